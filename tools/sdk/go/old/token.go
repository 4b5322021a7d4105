package main

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

func (t test) module() string { return "github.com/Azure/azure-sdk-for-go/sdk/azidentity" }

func (t test) token(ctx context.Context) (string, error) {
	options := &azidentity.ManagedIdentityCredentialOptions{}
	switch {
	case t.Client != "":
		options.ID = azidentity.ClientID(t.Client)
	case t.Resource != "":
		options.ID = azidentity.ResourceID(t.Resource)
	case t.Object != "":
		return "", errUnsupported
	}
	credential, err := azidentity.NewManagedIdentityCredential(options)
	if err != nil {
		return "", err
	}
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://vault.azure.net/.default"}})
	return token.Token, err
}
