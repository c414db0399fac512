"""HTTP: read requests, hand them to the service, write answers.

server.py      the web server and its graceful shutdown; protocol.py reads HTTP/1.1 from its connections
app.py         puts the routes, the middleware and the error handlers together
handler.py     the steps that all routes share: key, body, disconnect, answer
forms.py       normalizes paths, HEAD and Expect; cross_origin.py is CORS
routes/        the routes, by API; dialects.py chooses the dialect of a rerank request
page/          the files of the page at `/`
schema/        fields of requests and answers; json_body.py, body.py and codings.py read bodies within limits
openapi.py     the OpenAPI document
"""
