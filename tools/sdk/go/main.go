// Asks for tokens with clients for Go; see ../README.md. The folder old has the same with an old client.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

type test struct{ How, Client, Resource, Object string }

type said struct {
	Token       string  `json:"token,omitempty"`
	Error       string  `json:"error,omitempty"`
	Unsupported bool    `json:"unsupported,omitempty"`
	Seconds     float64 `json:"seconds"`
	Version     string  `json:"version"`
}

// errUnsupported says that the client has no way of naming an identity like this.
var errUnsupported = errors.New("unsupported")

func version(module string) string {
	info, _ := debug.ReadBuildInfo()
	for _, dependency := range info.Deps {
		if dependency.Path == module {
			return dependency.Version
		}
	}
	return ""
}

func (t test) ask() said {
	started := time.Now()
	token, err := t.token(context.Background())
	answer := said{Token: token, Seconds: time.Since(started).Seconds(), Version: version(t.module())}
	switch {
	case errors.Is(err, errUnsupported):
		answer.Unsupported = true
	case err != nil:
		answer.Error = err.Error()
	}
	return answer
}

func main() {
	var tests []test
	if err := json.Unmarshal([]byte(os.Args[1]), &tests); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	answers := make([]said, len(tests))
	var group sync.WaitGroup
	for i, t := range tests {
		group.Add(1)
		go func() { defer group.Done(); answers[i] = t.ask() }()
	}
	group.Wait()
	for _, answer := range answers {
		line, _ := json.Marshal(answer)
		fmt.Println(string(line))
	}
}
