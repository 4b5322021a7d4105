// Asks for tokens with azidentity; see ../README.md.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

type test struct{ How, Client, Resource, Object string }

type said struct {
	Token   string  `json:"token,omitempty"`
	Error   string  `json:"error,omitempty"`
	Seconds float64 `json:"seconds"`
}

// next is the credential after the managed identity in a chain.
type next struct{}

func (next) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "the next credential", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func (t test) credential() (azcore.TokenCredential, error) {
	if t.How == "default" {
		return azidentity.NewDefaultAzureCredential(nil)
	}
	options := &azidentity.ManagedIdentityCredentialOptions{}
	switch {
	case t.Client != "":
		options.ID = azidentity.ClientID(t.Client)
	case t.Resource != "":
		options.ID = azidentity.ResourceID(t.Resource)
	case t.Object != "":
		options.ID = azidentity.ObjectID(t.Object)
	}
	credential, err := azidentity.NewManagedIdentityCredential(options)
	if err != nil || t.How != "chain" {
		return credential, err
	}
	return azidentity.NewChainedTokenCredential([]azcore.TokenCredential{credential, next{}}, nil)
}

func (t test) ask() said {
	started := time.Now()
	credential, err := t.credential()
	var token azcore.AccessToken
	if err == nil {
		token, err = credential.GetToken(context.Background(), policy.TokenRequestOptions{Scopes: []string{"https://vault.azure.net/.default"}})
	}
	answer := said{Token: token.Token, Seconds: time.Since(started).Seconds()}
	if err != nil {
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
