// The interop agent: what an agent in the field is, a Go program on hashicorp/yamux over gorilla/websocket.
//
// Two kinds: "http" reads one HTTP request from each stream (or several, with -keepalive), forwards it to the local
// server and writes the answer; "pump" copies bytes between the stream and the local server.
// Without -local it serves a small HTTP server of its own. Each event is one JSON line on stdout.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"math/rand"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

type options struct {
	url, token, auth, kind, role, local string
	keepalive, once                     bool
	retry                               time.Duration
}

var output sync.Mutex

// event prints one JSON line; the tests wait for these.
func event(name string, facts map[string]any) {
	line := map[string]any{"event": name}
	for key, value := range facts {
		line[key] = value
	}
	output.Lock()
	defer output.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(line)
}

func main() {
	var o options
	flag.StringVar(&o.url, "url", "ws://127.0.0.1:3800/tunnel/connect", "the daemon")
	flag.StringVar(&o.token, "token", "", "pairing token")
	flag.StringVar(&o.auth, "auth", "query", "where the token goes: query, bearer or header (X-Relay-Token)")
	flag.StringVar(&o.kind, "kind", "http", "http or pump")
	flag.StringVar(&o.role, "role", "server", "our role in yamux: server or client")
	flag.StringVar(&o.local, "local", "", "host:port of the local server; empty: a built-in one")
	flag.BoolVar(&o.keepalive, "keepalive", false, "kind http: several requests a stream")
	flag.BoolVar(&o.once, "once", false, "end when the first session has ended")
	flag.DurationVar(&o.retry, "retry", 500*time.Millisecond, "longest pause between attempts")
	flag.Parse()
	if o.kind != "http" && o.kind != "pump" || o.role != "server" && o.role != "client" {
		log.Fatal("unknown -kind or -role")
	}
	if o.local == "" {
		o.local = serveBuiltin()
	}
	event("started", map[string]any{"local": o.local, "kind": o.kind, "role": o.role})
	for {
		err := session(o)
		event("disconnected", map[string]any{"error": text(err)})
		if o.once {
			return
		}
		time.Sleep(time.Duration(rand.Int63n(int64(o.retry) + 1)))
	}
}

// session connects once and serves until the tunnel ends.
func session(o options) error {
	target, err := url.Parse(o.url)
	if err != nil {
		return err
	}
	header := http.Header{}
	switch o.auth {
	case "bearer":
		header.Set("Authorization", "Bearer "+o.token)
	case "header":
		header.Set("X-Relay-Token", o.token)
	default:
		query := target.Query()
		query.Set("token", o.token)
		target.RawQuery = query.Encode()
	}
	dialer := websocket.Dialer{HandshakeTimeout: 20 * time.Second}
	socket, answer, err := dialer.Dial(target.String(), header)
	if err != nil {
		if answer != nil {
			event("refused", map[string]any{"status": answer.StatusCode})
		}
		return err
	}
	conn := &wsConn{socket: socket}
	config := yamux.DefaultConfig()
	config.LogOutput = os.Stderr
	var mux *yamux.Session
	if o.role == "server" {
		mux, err = yamux.Server(conn, config)
	} else {
		mux, err = yamux.Client(conn, config)
	}
	if err != nil {
		return err
	}
	defer mux.Close()
	event("connected", map[string]any{"device": answer.Header.Get("X-VisionA-Device-Id")})
	for {
		stream, err := mux.AcceptStream()
		if err != nil {
			return err
		}
		if o.kind == "pump" {
			go pump(stream, o.local)
		} else {
			go serveHTTP(stream, o.local, o.keepalive)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
