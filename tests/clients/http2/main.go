// Command http2 sends POST requests over HTTP/2 until SIGTERM, with Go's own client, which honours GOAWAY.
//
// It prints one line of JSON: how many were answered 200, how many failed, and the first failures. The requests carry
// a body and are not idempotent, so the client repeats only what the server has certainly not processed.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

type report struct {
	Answered int      `json:"answered"`
	Failed   int      `json:"failed"`
	Failures []string `json:"failures"`
}

func main() {
	url := flag.String("url", "", "where to send to")
	ca := flag.String("ca", "", "file with the CA of the server, PEM")
	token := flag.String("token", "", "bearer token")
	workers := flag.Int("workers", 4, "requests in flight")
	flag.Parse()

	pem, err := os.ReadFile(*ca)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true},
	}

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	stopped := make(chan struct{})
	go func() { <-stop; close(stopped) }()

	var lock sync.Mutex
	var seen report
	var sending sync.WaitGroup
	for i := 0; i < *workers; i++ {
		sending.Add(1)
		go func() {
			defer sending.Done()
			for {
				select {
				case <-stopped:
					return
				default:
				}
				failure := send(client, *url, *token)
				lock.Lock()
				if failure == "" {
					seen.Answered++
				} else {
					seen.Failed++
					if len(seen.Failures) < 10 {
						seen.Failures = append(seen.Failures, failure)
					}
				}
				lock.Unlock()
			}
		}()
	}
	sending.Wait()
	_ = json.NewEncoder(os.Stdout).Encode(seen)
}

// send returns what went wrong, or nothing.
func send(client *http.Client, url, token string) string {
	request, err := http.NewRequest(http.MethodPost, url, strings.NewReader("{}"))
	if err != nil {
		return err.Error()
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err.Error()
	}
	if response.StatusCode != http.StatusOK || response.ProtoMajor != 2 {
		return fmt.Sprintf("%s over %s", response.Status, response.Proto)
	}
	return ""
}
