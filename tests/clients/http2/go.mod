module torana/tests/http2

go 1.19
