package main

import (
	"context"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/go-autorest/autorest/adal"
	terraform "github.com/hashicorp/go-azure-sdk/sdk/auth"
	"github.com/hashicorp/go-azure-sdk/sdk/environments"
	hamilton "github.com/manicminer/hamilton/auth"
)

const resource = "https://vault.azure.net"

func (t test) module() string {
	switch t.How {
	case "adal":
		return "github.com/Azure/go-autorest/autorest/adal"
	case "terraform":
		return "github.com/hashicorp/go-azure-sdk/sdk"
	case "hamilton":
		return "github.com/manicminer/hamilton"
	default:
		return "github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	}
}

func (t test) token(ctx context.Context) (string, error) {
	switch t.How {
	case "adal":
		return t.withAdal(ctx)
	case "terraform":
		return t.withTerraform(ctx)
	case "hamilton":
		return t.withHamilton(ctx)
	default:
		return t.withCredential(ctx)
	}
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

func (t test) withCredential(ctx context.Context) (string, error) {
	credential, err := t.credential()
	if err != nil {
		return "", err
	}
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{resource + "/.default"}})
	return token.Token, err
}

func (t test) withAdal(ctx context.Context) (string, error) {
	if t.Object != "" {
		return "", errUnsupported
	}
	options := &adal.ManagedIdentityOptions{ClientID: t.Client, IdentityResourceID: t.Resource}
	token, err := adal.NewServicePrincipalTokenFromManagedIdentity(resource, options)
	if err != nil {
		return "", err
	}
	err = token.EnsureFreshWithContext(ctx)
	return token.OAuthToken(), err
}

func (t test) withTerraform(ctx context.Context) (string, error) {
	if t.Resource != "" || t.Object != "" {
		return "", errUnsupported
	}
	options := terraform.ManagedIdentityAuthorizerOptions{Api: environments.AzurePublic().KeyVault, ClientId: t.Client}
	authorizer, err := terraform.NewManagedIdentityAuthorizer(ctx, options)
	if err != nil {
		return "", err
	}
	token, err := authorizer.Token(ctx, nil)
	if err != nil {
		return "", err
	}
	return token.AccessToken, nil
}

func (t test) withHamilton(ctx context.Context) (string, error) {
	if t.Resource != "" || t.Object != "" {
		return "", errUnsupported
	}
	config, err := hamilton.NewMsiConfig(resource, "", t.Client)
	if err != nil {
		return "", err
	}
	token, err := config.TokenSource(ctx).Token()
	if err != nil {
		return "", err
	}
	return token.AccessToken, nil
}
