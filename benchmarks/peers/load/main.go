// The load of the benchmarks: as many connections as told, each asking again as soon as it is answered, over bare sockets,
// so that the load costs little beside what is measured. Writes one JSON object: how many, how fast, how late.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

type headers []string

func (h *headers) String() string         { return strings.Join(*h, ", ") }
func (h *headers) Set(value string) error { *h = append(*h, value); return nil }

// tally is what one connection saw. Latencies are in microseconds, from the first byte sent to the last received.
type tally struct {
	latencies []uint32
	bytesIn   int64
	bytesOut  int64
	errors    map[string]int
}

type load struct {
	address string
	heads   [][]byte // a connection asks for one of them, always the same
	body    int64
	block   []byte
	until   time.Time
}

func (l *load) count(t *tally, what string) {
	if t.errors == nil {
		t.errors = map[string]int{}
	}
	t.errors[what]++
}

func (l *load) over() bool { return !time.Now().Before(l.until) }

// work asks until the time is up; a connection that broke is made anew after a short pause.
func (l *load) work(t *tally, head []byte) {
	for !l.over() {
		conn, err := net.DialTimeout("tcp", l.address, 5*time.Second)
		if err != nil {
			l.count(t, "connect")
			time.Sleep(20 * time.Millisecond)
			continue
		}
		_ = conn.SetDeadline(l.until)
		err = l.exchanges(conn, t, head)
		_ = conn.Close()
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			l.count(t, reason(err))
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func reason(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "cut"
	}
	return err.Error()
}

func (l *load) exchanges(conn net.Conn, t *tally, head []byte) error {
	reader := bufio.NewReaderSize(conn, 64<<10)
	for !l.over() {
		begun := time.Now()
		if _, err := conn.Write(head); err != nil {
			return err
		}
		for left := l.body; left > 0; {
			n, err := conn.Write(l.block[:min(left, int64(len(l.block)))])
			t.bytesOut += int64(n)
			left -= int64(n)
			if err != nil {
				return err
			}
		}
		status, stays, err := l.answer(reader, t)
		if err != nil {
			return err
		}
		if status < 200 || status > 299 {
			l.count(t, strconv.Itoa(status))
			time.Sleep(5 * time.Millisecond)
		} else {
			t.latencies = append(t.latencies, uint32(min(time.Since(begun).Microseconds(), 1<<32-1)))
		}
		if !stays {
			return nil
		}
	}
	return nil
}

// answer reads one whole answer. Its body's bytes are counted as they come, so that an endless one counts as well.
func (l *load) answer(reader *bufio.Reader, t *tally) (status int, stays bool, err error) {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return 0, false, err
	}
	if len(line) < 12 {
		return 0, false, errors.New("no status line")
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, false, errors.New("no status line")
	}
	length, chunked, stays := int64(-1), false, true
	for {
		if line, err = reader.ReadSlice('\n'); err != nil {
			return status, false, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return status, false, err
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = bytes.EqualFold(value, []byte("chunked"))
		case bytes.EqualFold(name, []byte("Connection")):
			stays = !bytes.EqualFold(value, []byte("close"))
		}
	}
	switch {
	case chunked:
		return status, stays, l.chunks(reader, t)
	case length >= 0:
		return status, stays, l.discard(reader, t, length)
	default:
		for err == nil {
			err = l.discard(reader, t, 1<<20)
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return status, false, err
	}
}

func (l *load) discard(reader *bufio.Reader, t *tally, left int64) error {
	for left > 0 {
		if reader.Buffered() == 0 {
			if _, err := reader.Peek(1); err != nil {
				return err
			}
		}
		n, err := reader.Discard(int(min(left, int64(reader.Buffered()))))
		t.bytesIn += int64(n)
		left -= int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *load) chunks(reader *bufio.Reader, t *tally) error {
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return err
		}
		if err = l.discard(reader, t, size); err != nil {
			return err
		}
		if _, err = reader.Discard(2); err != nil { // CRLF after a chunk; after the last one the end of no trailers
			return err
		}
		if size == 0 {
			return nil
		}
	}
}

func request(target *url.URL, fields headers, method string, body int64) []byte {
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, target.RequestURI(), target.Host)
	for _, field := range fields {
		head.WriteString(field + "\r\n")
	}
	if body > 0 {
		fmt.Fprintf(&head, "Content-Length: %d\r\n", body)
	}
	head.WriteString("\r\n")
	return head.Bytes()
}

func at(sorted []uint32, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]) / 1000
}

func main() {
	var urls, fields headers
	flag.Var(&urls, "url", "what is asked for; may be repeated, on one host: connections are spread over them")
	connections := flag.Int("c", 1, "connections")
	lasting := flag.Duration("d", 3*time.Second, "how long")
	method := flag.String("method", "GET", "method")
	body := flag.Int64("body", 0, "bytes sent with each request")
	flag.Var(&fields, "H", "a header field, as 'Name: value'; may be repeated")
	flag.Parse()
	begun := time.Now()
	l := &load{body: *body, block: make([]byte, 256<<10), until: begun.Add(*lasting)}
	for _, one := range urls {
		target, err := url.Parse(one)
		if err != nil || target.Host == "" {
			log.Fatal("-url: no URL")
		}
		l.address, l.heads = target.Host, append(l.heads, request(target, fields, *method, *body))
	}
	if len(l.heads) == 0 {
		log.Fatal("-url: none")
	}
	tallies := make([]tally, *connections)
	var all sync.WaitGroup
	for i := range tallies {
		all.Add(1)
		go func() {
			defer all.Done()
			l.work(&tallies[i], l.heads[i%len(l.heads)])
		}()
	}
	all.Wait()
	seconds := time.Since(begun).Seconds()
	var latencies []uint32
	var in, out int64
	failed, faults, fewest, most := 0, map[string]int{}, int64(-1), int64(0)
	for i := range tallies {
		t := &tallies[i]
		latencies = append(latencies, t.latencies...)
		in, out = in+t.bytesIn, out+t.bytesOut
		if fewest < 0 || t.bytesIn < fewest {
			fewest = t.bytesIn
		}
		most = max(most, t.bytesIn)
		for what, n := range t.errors {
			failed += n
			faults[what] += n
		}
	}
	sort.Slice(latencies, func(i, j int) bool { return latencies[i] < latencies[j] })
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{
		"requests": len(latencies), "seconds": seconds, "rps": float64(len(latencies)) / seconds,
		"bytes_in": in, "bytes_out": out, "errors": failed, "faults": faults, "fewest_bytes": fewest, "most_bytes": most,
		"p50_ms": at(latencies, 0.5), "p90_ms": at(latencies, 0.9), "p99_ms": at(latencies, 0.99),
		"p999_ms": at(latencies, 0.999), "max_ms": at(latencies, 1),
	})
}
