// Posts each file to an address, by Go's net/http. A line for each answer.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	for _, name := range os.Args[2:] {
		file, err := os.Open(name)
		if err != nil {
			panic(err)
		}
		// Of a length that it does not know, and so in chunks.
		answer, err := http.Post(os.Args[1], "application/json", file)
		if err != nil {
			panic(err)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			panic(err)
		}
		answer.Body.Close()
		fmt.Println(answer.StatusCode, string(body))
	}
}
