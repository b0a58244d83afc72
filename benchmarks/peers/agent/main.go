// The agent of the benchmarks: serves both sides alike. Each stream is joined to a connection of the local server.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

type pipe struct {
	*websocket.Conn
	reader io.Reader
}

func (p *pipe) Read(into []byte) (int, error) {
	for {
		if p.reader == nil {
			_, reader, err := p.NextReader()
			if err != nil {
				return 0, err
			}
			p.reader = reader
		}
		n, err := p.reader.Read(into)
		if err == io.EOF {
			p.reader, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (p *pipe) Write(data []byte) (int, error) {
	if err := p.WriteMessage(websocket.BinaryMessage, data); err != nil {
		return 0, err
	}
	return len(data), nil
}

func (p *pipe) SetDeadline(at time.Time) error {
	return errors.Join(p.SetReadDeadline(at), p.SetWriteDeadline(at))
}

func pump(stream *yamux.Stream, local string) {
	defer stream.Close()
	conn, err := net.Dial("tcp", local)
	if err != nil {
		return
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(stream, conn)
}

// fleet is all tunnels of this process.
type fleet struct {
	url, name, local string
	buffer, socket   int
	online           atomic.Int64
	dials            atomic.Int64
	mutex            sync.Mutex
	faults           map[string]int
}

func (f *fleet) fault(what string) {
	f.mutex.Lock()
	f.faults[what]++
	f.mutex.Unlock()
}

// dialNarrow connects with socket buffers of a size, as on a machine with little memory.
func (f *fleet) dialNarrow(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	tcp := conn.(*net.TCPConn)
	if err := errors.Join(tcp.SetReadBuffer(f.socket), tcp.SetWriteBuffer(f.socket)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// serve holds one tunnel until it breaks. The error says why; a refusal by its status.
func (f *fleet) serve(token string, number int) error {
	header := http.Header{}
	if f.name != "" {
		header.Set("X-VisionA-Agent", f.name)
		header.Set("X-VisionA-Instance", fmt.Sprintf("bench-%d", number))
	}
	dialer := websocket.Dialer{HandshakeTimeout: 30 * time.Second, ReadBufferSize: f.buffer, WriteBufferSize: f.buffer}
	if f.socket > 0 {
		dialer.NetDial = f.dialNarrow
	}
	f.dials.Add(1)
	conn, answer, err := dialer.Dial(f.url+"?token="+token, header)
	if err != nil {
		if answer != nil {
			return fmt.Errorf("refused %d", answer.StatusCode)
		}
		return errors.New("no answer")
	}
	defer conn.Close()
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Server(&pipe{Conn: conn}, config)
	if err != nil {
		return err
	}
	f.online.Add(1)
	defer f.online.Add(-1)
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return errors.New("ended")
		}
		go pump(stream, f.local)
	}
}

// tell writes a line of JSON whenever something changed: how many are online, dials made, faults by kind.
func (f *fleet) tell(every time.Duration) {
	last := ""
	for {
		f.mutex.Lock()
		line, _ := json.Marshal(map[string]any{"online": f.online.Load(), "dials": f.dials.Load(), "faults": f.faults})
		f.mutex.Unlock()
		if string(line) != last {
			fmt.Println(string(line))
			last = string(line)
		}
		time.Sleep(every)
	}
}

func main() {
	url := flag.String("url", "ws://127.0.0.1:4800/tunnel/connect", "relay")
	token := flag.String("token", "box", "token, or the device's name at the Go reference")
	file := flag.String("tokens", "", "a file of tokens, one a line: a tunnel each")
	name := flag.String("name", "", "X-VisionA-Agent; empty: say nothing, as agents in the field do")
	local := flag.String("local", "127.0.0.1:4900", "local server")
	redial := flag.Duration("redial", 0, "dial again this long after a tunnel broke; 0: never")
	buffer := flag.Int("buffer", 32<<10, "bytes of each tunnel's read and write buffer")
	socket := flag.Int("socket", 0, "bytes of each socket buffer of a tunnel; 0: the system's")
	flag.Parse()
	log.SetOutput(os.Stderr)
	tokens := []string{*token}
	if *file != "" {
		content, err := os.ReadFile(*file)
		if err != nil {
			log.Fatal(err)
		}
		tokens = strings.Fields(string(content))
	}
	f := &fleet{url: *url, name: *name, local: *local, buffer: *buffer, socket: *socket, faults: map[string]int{}}
	go f.tell(20 * time.Millisecond)
	var all sync.WaitGroup
	for i, mine := range tokens {
		all.Add(1)
		go func() {
			defer all.Done()
			for {
				f.fault(f.serve(mine, i).Error())
				if *redial == 0 {
					return
				}
				time.Sleep(*redial)
			}
		}()
	}
	all.Wait()
}
