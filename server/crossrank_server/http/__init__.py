"""HTTP: reads requests, hands them to the service, writes answers. Nothing here knows how scores are made.

server.py      the web server, and its orderly end; protocol.py reads HTTP/1.1 from its connections
app.py         puts the routes, the middleware and the error handlers together
gateway.py     what all routes share: who calls, the body, the disconnect, the answer
forms.py       what requests may write in several ways; cross_origin.py lets scripts of other origins ask
routes/        one dialect each, and the page at `/`
page/          the page's files, sent as they are
schema/        fields of requests and answers; json_body.py, body.py and codings.py read them within limits
openapi.py     the document that describes them all
"""
