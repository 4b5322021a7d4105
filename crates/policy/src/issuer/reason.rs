//! Findings about an OIDC issuer by their stable names, for scripts and for the page that explains them.

/// What is not as Entra needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/issuer.md explains each by its name")]
pub enum Reason {
    MalformedUrl,
    NotHttps,
    ClusterInternal,
    TokenNotSeen,
    TokenIssuerDiffers,
    ApiServersDiffer,
    NotPublic,
    NameNotFound,
    Unreachable,
    TlsFailed,
    TimedOut,
    Redirected,
    AccessRefused,
    NotFound,
    UnexpectedStatus,
    TooLarge,
    Malformed,
    IssuerDiffers,
    JwksUriNotHttps,
    SigningKeyMissing,
    KeyMissing,
    KeyDiffers,
    NoKeys,
    TooManyKeys,
    NotRs256,
    AlgorithmNotListed,
    SmallKey,
    LongCache,
}

impl Reason {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::MalformedUrl => "MalformedUrl",
            Self::NotHttps => "NotHttps",
            Self::ClusterInternal => "ClusterInternal",
            Self::TokenNotSeen => "TokenNotSeen",
            Self::TokenIssuerDiffers => "TokenIssuerDiffers",
            Self::ApiServersDiffer => "ApiServersDiffer",
            Self::NotPublic => "NotPublic",
            Self::NameNotFound => "NameNotFound",
            Self::Unreachable => "Unreachable",
            Self::TlsFailed => "TlsFailed",
            Self::TimedOut => "TimedOut",
            Self::Redirected => "Redirected",
            Self::AccessRefused => "AccessRefused",
            Self::NotFound => "NotFound",
            Self::UnexpectedStatus => "UnexpectedStatus",
            Self::TooLarge => "TooLarge",
            Self::Malformed => "Malformed",
            Self::IssuerDiffers => "IssuerDiffers",
            Self::JwksUriNotHttps => "JwksUriNotHttps",
            Self::SigningKeyMissing => "SigningKeyMissing",
            Self::KeyMissing => "KeyMissing",
            Self::KeyDiffers => "KeyDiffers",
            Self::NoKeys => "NoKeys",
            Self::TooManyKeys => "TooManyKeys",
            Self::NotRs256 => "NotRs256",
            Self::AlgorithmNotListed => "AlgorithmNotListed",
            Self::SmallKey => "SmallKey",
            Self::LongCache => "LongCache",
        }
    }
}
