// An identity provider for the tests: dex's server over its store in memory, with its own table of passwords.
//
//	dex PORT CLIENT_ID CLIENT_SECRET REDIRECT_URI…
//
// It listens on 127.0.0.1 and is http://127.0.0.1:PORT/dex. What happens to it comes on standard input, a line each,
// and is answered by a line once it holds:
//
//	{"email": "pat@example.com", "name": "Pat", "id": "1"}   that person, by their id; the password is `password`
//	rotate                                                   another key signs; the one before is still published
//	replace                                                  another key signs, and no other is published
//
// With the end of standard input it ends.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/memory"
	"golang.org/x/crypto/bcrypt"
)

const password = "password"

// provider is dex, built anew over the same store where its keys are to change: dex looks at them as it starts.
type provider struct {
	issuer string
	store  storage.Storage
	log    *slog.Logger
	hash   []byte
	serves atomic.Pointer[server.Server]
	cancel context.CancelFunc
}

func main() {
	if len(os.Args) < 5 {
		log.Fatal("usage: dex PORT CLIENT_ID CLIENT_SECRET REDIRECT_URI…")
	}
	port, id, secret, pages := os.Args[1], os.Args[2], os.Args[3], os.Args[4:]
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost) // dex refuses cheaper ones
	must(err)
	p := &provider{issuer: "http://127.0.0.1:" + port + "/dex", store: memory.New(logger), log: logger, hash: hash}
	ctx := context.Background()
	must(p.store.CreateClient(ctx, storage.Client{ID: id, Secret: secret, Name: "VisionA", RedirectURIs: pages}))
	must(p.store.CreateConnector(ctx, storage.Connector{ID: server.LocalConnector, Type: server.LocalConnector, Name: "e-mail"}))
	must(p.start())
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	must(err)
	go func() {
		must(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serves.Load().ServeHTTP(w, r) })))
	}()
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := p.do(ctx, lines.Text()); err != nil {
			fmt.Println("failed:", err)
		} else {
			fmt.Println("done")
		}
	}
}

// start serves by a new dex: it makes a key where none is, or where the next one is due.
func (p *provider) start() error {
	ctx, cancel := context.WithCancel(context.Background())
	built, err := server.NewServer(ctx, server.Config{
		Issuer:             p.issuer,
		Storage:            p.store,
		SkipApprovalScreen: true,
		PasswordConnector:  server.LocalConnector,
		IDTokensValidFor:   time.Hour,
		Logger:             p.log,
	})
	if err != nil {
		cancel()
		return err
	}
	p.serves.Store(built)
	if p.cancel != nil {
		p.cancel()
	}
	p.cancel = cancel
	return nil
}

func (p *provider) do(ctx context.Context, line string) error {
	switch line {
	case "rotate", "replace":
		err := p.store.UpdateKeys(func(keys storage.Keys) (storage.Keys, error) {
			if line == "replace" {
				return storage.Keys{}, nil
			}
			keys.NextRotation = time.Now().Add(-time.Second)
			return keys, nil
		})
		if err != nil {
			return err
		}
		return p.start()
	}
	var told struct{ Email, Name, ID string }
	if err := json.Unmarshal([]byte(line), &told); err != nil {
		return err
	}
	known, err := p.store.ListPasswords()
	if err != nil {
		return err
	}
	for _, row := range known {
		if row.UserID == told.ID {
			if err := p.store.DeletePassword(row.Email); err != nil && !errors.Is(err, storage.ErrNotFound) {
				return err
			}
		}
	}
	return p.store.CreatePassword(ctx, storage.Password{Email: told.Email, Hash: p.hash, Username: told.Name, UserID: told.ID})
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
