// Many WebSockets at once, each saying something now and then and awaiting its echo. Writes `open` once all are there, then
// on a line of its input measures until the next line, and writes one JSON object.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

type words []string

func (w *words) String() string         { return strings.Join(*w, " ") }
func (w *words) Set(value string) error { *w = append(*w, value); return nil }

type client struct {
	conn   *websocket.Conn
	millis []float64
	failed error
}

// echo says the time once every interval, at a moment of its own, and notes how long its echo took while `measuring`.
func (c *client) echo(every time.Duration, measuring, over *atomic.Bool) {
	time.Sleep(time.Duration(rand.Int64N(int64(every))))
	message := make([]byte, 64)
	for !over.Load() {
		begun := time.Now()
		binary.BigEndian.PutUint64(message, uint64(begun.UnixNano()))
		if c.failed = c.conn.WriteMessage(websocket.BinaryMessage, message); c.failed != nil {
			return
		}
		_ = c.conn.SetReadDeadline(begun.Add(10 * time.Second))
		if _, _, c.failed = c.conn.ReadMessage(); c.failed != nil {
			return
		}
		took := time.Since(begun)
		if measuring.Load() {
			c.millis = append(c.millis, float64(took.Microseconds())/1000)
		}
		time.Sleep(every - min(took, every))
	}
}

func main() {
	var urls, fields words
	count := flag.Int("n", 100, "sockets, spread over the URLs")
	every := flag.Duration("every", time.Second, "a message of each socket")
	flag.Var(&urls, "url", "where to; may be repeated")
	flag.Var(&fields, "H", "a header field, as 'Name: value'; may be repeated")
	flag.Parse()
	if len(urls) == 0 {
		log.Fatal("-url: none")
	}
	header := http.Header{}
	for _, field := range fields {
		name, value, _ := strings.Cut(field, ":")
		header.Set(name, strings.TrimSpace(value))
	}
	dialer := websocket.Dialer{HandshakeTimeout: 20 * time.Second, ReadBufferSize: 1024, WriteBufferSize: 1024}
	clients := make([]client, *count)
	gate, all := make(chan struct{}, 64), sync.WaitGroup{}
	for i := range clients {
		all.Add(1)
		gate <- struct{}{}
		go func() {
			defer func() { <-gate; all.Done() }()
			clients[i].conn, _, clients[i].failed = dialer.Dial(urls[i%len(urls)], header)
		}()
	}
	all.Wait()
	var measuring, over atomic.Bool
	for i := range clients {
		if clients[i].failed != nil {
			log.Fatalf("socket %d of %d: %v", i, *count, clients[i].failed)
		}
		all.Add(1)
		go func() {
			defer all.Done()
			clients[i].echo(*every, &measuring, &over)
		}()
	}
	fmt.Println("open")
	input := bufio.NewScanner(os.Stdin)
	input.Scan()
	measuring.Store(true)
	begun := time.Now()
	input.Scan()
	seconds := time.Since(begun).Seconds()
	over.Store(true)
	all.Wait()
	var millis []float64
	failures := 0
	for i := range clients {
		millis = append(millis, clients[i].millis...)
		if clients[i].failed != nil {
			failures++
		}
	}
	sort.Float64s(millis)
	at := func(share float64) float64 {
		if len(millis) == 0 {
			return 0
		}
		return millis[min(len(millis)-1, int(share*float64(len(millis))))]
	}
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{
		"messages": len(millis), "seconds": seconds, "failures": failures, "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1),
	})
}
