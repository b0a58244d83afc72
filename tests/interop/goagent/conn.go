package main

import (
	"io"
	"net"
	"time"

	"github.com/gorilla/websocket"
)

// wsConn is a WebSocket as a net.Conn: the payloads of its binary messages, one after another.
type wsConn struct {
	socket *websocket.Conn
	reader io.Reader
}

func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.reader == nil {
			kind, reader, err := c.socket.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				continue
			}
			c.reader = reader
		}
		n, err := c.reader.Read(p)
		if err == io.EOF {
			c.reader = nil
			if n == 0 {
				continue
			}
			err = nil
		}
		return n, err
	}
}

// Write sends one binary message; yamux calls it from one goroutine only.
func (c *wsConn) Write(p []byte) (int, error) {
	if err := c.socket.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *wsConn) Close() error                       { return c.socket.Close() }
func (c *wsConn) LocalAddr() net.Addr                { return c.socket.LocalAddr() }
func (c *wsConn) RemoteAddr() net.Addr               { return c.socket.RemoteAddr() }
func (c *wsConn) SetReadDeadline(t time.Time) error  { return c.socket.SetReadDeadline(t) }
func (c *wsConn) SetWriteDeadline(t time.Time) error { return c.socket.SetWriteDeadline(t) }
func (c *wsConn) SetDeadline(t time.Time) error {
	if err := c.socket.SetReadDeadline(t); err != nil {
		return err
	}
	return c.socket.SetWriteDeadline(t)
}
