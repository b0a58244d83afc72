// A minimal agent in Go, to read and to start from: gorilla/websocket, hashicorp/yamux and a byte pump.
//
//	VISIONA_AGENT_PAIRING_TOKEN=vAc_... go run . ws://localhost:3800/tunnel/connect 127.0.0.1:8080
//
// The daemon opens a stream for each connection; this program joins it to the local server. It names no
// X-VisionA-Agent, so it may go on using its pairing token.
package main

import (
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

// conn is the WebSocket as a stream of bytes: the payloads of its binary messages, one after another.
type conn struct {
	*websocket.Conn
	message io.Reader
}

func (c *conn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, message, err := c.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, fmt.Errorf("unexpected message of type %d", kind)
			}
			c.message = message
		}
		n, err := c.message.Read(p)
		if err == io.EOF { // the end of a message is not the end of the stream
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *conn) Write(p []byte) (int, error) {
	return len(p), c.WriteMessage(websocket.BinaryMessage, p)
}

// carry joins one stream to a new connection to the local server, half-closes included.
func carry(stream *yamux.Stream, local string) {
	defer stream.Close()
	server, err := net.DialTimeout("tcp", local, 5*time.Second)
	if err != nil {
		log.Print(err)
		return
	}
	defer server.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(server, stream)
		_ = server.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(stream, server)
	stream.Close() // hashicorp's Close is a half-close
	<-ended
}

func serve(url, local, token string) error {
	header := http.Header{"Authorization": {"Bearer " + token}}
	socket, _, err := websocket.DefaultDialer.Dial(url, header)
	if err != nil {
		return err
	}
	session, err := yamux.Server(&conn{Conn: socket}, nil) // the daemon is the yamux client: it opens the streams
	if err != nil {
		return err
	}
	defer session.Close()
	fmt.Println("connected")
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return err
		}
		go carry(stream, local)
	}
}

func main() {
	delay := 500 * time.Millisecond
	for {
		began := time.Now()
		err := serve(os.Args[1], os.Args[2], os.Getenv("VISIONA_AGENT_PAIRING_TOKEN"))
		fmt.Println("disconnected:", err)
		if time.Since(began) > time.Minute {
			delay = 500 * time.Millisecond
		}
		time.Sleep(time.Duration(rand.Int63n(int64(delay)))) // full jitter: agents must not return all at once
		delay = min(2*delay, 30*time.Second)
	}
}
