// The Go reference: what the prototype's users have today, built small. Agents dial in over gorilla/websocket, hashicorp/yamux
// multiplexes, and httputil.ReverseProxy carries each request over a stream, with streams reused as idle connections.
package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

// pipe makes one byte stream of a WebSocket's binary messages.
type pipe struct {
	*websocket.Conn
	reader io.Reader
}

func (p *pipe) Read(into []byte) (int, error) {
	for {
		if p.reader == nil {
			kind, reader, err := p.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("not a binary message")
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

type relay struct {
	mutex   sync.RWMutex
	tunnels map[string]*yamux.Session
	upgrade websocket.Upgrader
	proxy   *httputil.ReverseProxy
}

func (r *relay) connect(w http.ResponseWriter, request *http.Request) {
	device := request.URL.Query().Get("token")
	conn, err := r.upgrade.Upgrade(w, request, nil)
	if err != nil {
		return
	}
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Client(&pipe{Conn: conn}, config)
	if err != nil {
		_ = conn.Close()
		return
	}
	r.mutex.Lock()
	old := r.tunnels[device]
	r.tunnels[device] = session
	r.mutex.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

func (r *relay) dial(_ context.Context, _, address string) (net.Conn, error) {
	device, _, _ := strings.Cut(address, ":")
	r.mutex.RLock()
	session := r.tunnels[device]
	r.mutex.RUnlock()
	if session == nil || session.IsClosed() {
		return nil, errors.New("no tunnel")
	}
	return session.Open()
}

func (r *relay) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	if request.URL.Path == "/tunnel/connect" {
		r.connect(w, request)
		return
	}
	r.proxy.ServeHTTP(w, request)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:4800", "public address")
	reuse := flag.Bool("reuse", true, "keep streams as idle connections")
	flag.Parse()
	r := &relay{tunnels: map[string]*yamux.Session{}}
	r.upgrade = websocket.Upgrader{ReadBufferSize: 32 << 10, WriteBufferSize: 32 << 10, CheckOrigin: func(*http.Request) bool { return true }}
	transport := &http.Transport{
		DialContext: r.dial, MaxIdleConns: 0, MaxIdleConnsPerHost: 256, IdleConnTimeout: 90 * time.Second,
		DisableCompression: true, DisableKeepAlives: !*reuse,
	}
	r.proxy = &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(p *httputil.ProxyRequest) {
			// /d/{device}/{path}: the device is the host that dial looks up
			device, path, _ := strings.Cut(strings.TrimPrefix(p.In.URL.Path, "/d/"), "/")
			p.Out.URL = &url.URL{Scheme: "http", Host: device, Path: "/" + path, RawQuery: p.In.URL.RawQuery}
			p.Out.Host = p.In.Host
			p.SetXForwarded()
		},
	}
	log.Fatal((&http.Server{Addr: *listen, Handler: r, ReadHeaderTimeout: 10 * time.Second}).ListenAndServe())
}
