package main

import (
	"bufio"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/yamux"
)

var transport = &http.Transport{
	MaxIdleConnsPerHost: 256,
	DisableCompression:  true,
	DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
}

// serveHTTP answers the requests on one stream: one, or several with keepalive.
func serveHTTP(stream *yamux.Stream, local string, keepalive bool) {
	defer stream.Close()
	reader := bufio.NewReader(stream)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				log.Printf("no request on stream %d: %v", stream.StreamID(), err)
			}
			return
		}
		request.URL.Scheme, request.URL.Host, request.RequestURI = "http", local, ""
		last := !keepalive || request.Close
		// This connection's end is not that of the pooled one to the local server
		request.Close = false
		if request.Header.Get("Expect") == "100-continue" {
			_, _ = io.WriteString(stream, "HTTP/1.1 100 Continue\r\n\r\n")
			request.Header.Del("Expect")
		}
		answer, err := transport.RoundTrip(request)
		if err != nil {
			log.Printf("local server: %v", err)
			return
		}
		if last {
			answer.Close = true
		}
		err = answer.Write(stream)
		answer.Body.Close()
		if err != nil || last {
			return
		}
		if _, err = io.Copy(io.Discard, request.Body); err != nil {
			return
		}
	}
}

// pump copies bytes both ways between one stream and one connection to the local server, half-closes included.
func pump(stream *yamux.Stream, local string) {
	defer stream.Close()
	upstream, err := net.DialTimeout("tcp", local, 5*time.Second)
	if err != nil {
		log.Printf("local server: %v", err)
		return
	}
	defer upstream.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.Copy(upstream, stream); err != nil {
			_ = upstream.(*net.TCPConn).SetLinger(0)
			upstream.Close()
			return
		}
		_ = upstream.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(stream, upstream)
	// hashicorp's Close is a half-close: what still comes from the other side is read until its end
	stream.Close()
	<-done
}
