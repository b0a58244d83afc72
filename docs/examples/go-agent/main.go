// A minimal agent in Go, to read and to start from: gorilla/websocket, hashicorp/yamux and a byte pump.
//
//	VISIONA_AGENT_PAIRING_TOKEN=vAc_... go run . ws://localhost:3800/tunnel/connect 127.0.0.1:8080
//
// The daemon opens a stream for each connection; this program joins it to the local server. It names no
// X-VisionA-Agent, so it may go on using its pairing token.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

// conn is the WebSocket as a stream of bytes: the payloads of its binary messages, one after another.
type conn struct {
	*websocket.Conn
	message io.Reader
	code    atomic.Int64 // the close code that ended it
}

func (c *conn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, message, err := c.NextReader()
			if err != nil {
				var closed *websocket.CloseError
				if errors.As(err, &closed) {
					c.code.Store(int64(closed.Code))
				}
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

// refused: the token is worth nothing, or the account is disabled. Try again slowly, for a person has to act.
const refused = time.Duration(-1)

// afterAnswer is the least wait after an answer that is no 101 (docs/wire.md, part 1).
func afterAnswer(answer *http.Response) time.Duration {
	if answer == nil {
		return 0
	}
	body, _ := io.ReadAll(io.LimitReader(answer.Body, 64*1024))
	// Only the daemon can refuse, and it answers with its envelope: a portal or a proxy may say 403 too.
	own := bytes.Contains(bytes.ReplaceAll(body, []byte(" "), nil), []byte(`"success":false`))
	if own && (answer.StatusCode == 401 || answer.StatusCode == 403) {
		return refused
	}
	if asked, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && asked >= 0 {
		return time.Duration(min(asked, 3600)) * time.Second
	}
	if own && answer.StatusCode == 409 {
		return 30 * time.Second
	}
	if own && answer.StatusCode == 429 {
		return 5 * time.Second
	}
	return 0
}

// afterClose is the least wait after a close code (docs/wire.md, part 8).
func afterClose(code int64) time.Duration {
	switch code {
	case 4401, 4403:
		return refused
	case 4409, 4429:
		return 30 * time.Second
	}
	return 0
}

// serve is one tunnel, from the dial to its end: the least wait before the next one, and why it ended.
func serve(url, local, token string) (time.Duration, error) {
	header := http.Header{"Authorization": {"Bearer " + token}}
	socket, answer, err := websocket.DefaultDialer.Dial(url, header)
	if err != nil {
		return afterAnswer(answer), err
	}
	pipe := &conn{Conn: socket}
	session, err := yamux.Server(pipe, nil) // the daemon is the yamux client: it opens the streams
	if err != nil {
		return 0, err
	}
	defer session.Close()
	fmt.Println("connected")
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return afterClose(pipe.code.Load()), err
		}
		go carry(stream, local)
	}
}

func main() {
	delay, slow := 500*time.Millisecond, time.Minute
	for {
		began := time.Now()
		least, err := serve(os.Args[1], os.Args[2], os.Getenv("VISIONA_AGENT_PAIRING_TOKEN"))
		fmt.Println("disconnected:", err)
		if time.Since(began) > time.Minute {
			delay, slow = 500*time.Millisecond, time.Minute
		}
		var pause time.Duration
		if least == refused {
			pause = slow + time.Duration(rand.Int63n(int64(slow/5)))
			slow = min(2*slow, 50*time.Minute)
		} else {
			pause = least + time.Duration(rand.Int63n(int64(delay))) // full jitter: agents must not return all at once
			delay = min(2*delay, 30*time.Second)
		}
		fmt.Printf("next attempt in %.1f s\n", pause.Seconds())
		time.Sleep(pause)
	}
}
