package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// serveBuiltin starts a small local HTTP server and returns its address.
func serveBuiltin() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { reply(w, map[string]string{"status": "ok"}) })
	mux.HandleFunc("/api/devices/scan", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"devices": []map[string]string{{
			"serial": "GO-KL520", "chip": "KL520", "usb_id": "3231:0100", "firmware": "2.2.0", "status": "ready",
		}}})
	})
	mux.HandleFunc("/api/inference/echo", echo)
	mux.HandleFunc("/api/inference/sink", sink)
	mux.HandleFunc("/api/inference/headers", func(w http.ResponseWriter, r *http.Request) {
		reply(w, map[string]any{"method": r.Method, "target": r.URL.RequestURI(), "headers": r.Header})
	})
	mux.HandleFunc("/api/inference/bytes/", download)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { log.Fatal(server.Serve(listener)) }()
	return listener.Addr().String()
}

func reply(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	_ = http.NewResponseController(w).EnableFullDuplex()
	if r.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	}
	_, _ = io.Copy(w, r.Body)
}

func sink(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, _ := io.Copy(sum, r.Body)
	reply(w, map[string]any{"bytes": n, "sha256": hex.EncodeToString(sum.Sum(nil))})
}

// download answers /api/inference/bytes/{n}: n bytes of the 256 byte values in a row.
func download(w http.ResponseWriter, r *http.Request) {
	left, err := strconv.ParseInt(strings.TrimPrefix(r.URL.Path, "/api/inference/bytes/"), 10, 64)
	if err != nil || left < 0 {
		http.Error(w, "a number of bytes is needed", http.StatusBadRequest)
		return
	}
	block := make([]byte, 65536)
	for i := range block {
		block[i] = byte(i)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
	for left > 0 {
		n, err := w.Write(block[:min(left, int64(len(block)))])
		if err != nil {
			return
		}
		left -= int64(n)
	}
}
