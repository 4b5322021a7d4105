//! Report of `podid issuer`, as text and as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use podid_policy::issuer::{Check, Evidence, Key, Outcome, discovery_url, jwks_url, shown};
use serde_json::{Value, json};

use crate::cli::table::Table;

/// What is printed.
pub struct Report {
    pub evidence: Evidence,
    pub source: Source,
    pub checks: Vec<Check>,
    /// What `--write` wrote.
    pub files: Vec<PathBuf>,
}

/// Who says that this is the issuer.
pub enum Source {
    /// `--issuer-url`.
    Flag,
    /// A token of this service account.
    Token(String),
    /// The API server's discovery document.
    ApiServer,
}

impl Source {
    fn text(&self) -> String {
        match self {
            Self::Flag => "--issuer-url".to_owned(),
            Self::Token(account) => format!("a token of the service account {account}"),
            Self::ApiServer => "the API server's discovery document".to_owned(),
        }
    }
}

/// A key, and where it is.
struct KeyPlaces<'a> {
    key: &'a Key,
    signs: bool,
    at_api_server: bool,
    published: Option<bool>,
}

impl Report {
    /// One without checks yet.
    pub fn new(evidence: Evidence, source: Source) -> Self {
        Self {
            evidence,
            source,
            checks: Vec::new(),
            files: Vec::new(),
        }
    }

    fn published_keys(&self) -> Option<&[Key]> {
        let published = self.evidence.published.as_ref()?;
        Some(&published.keys.as_ref()?.as_ref().ok()?.keys)
    }

    /// Every key once: the API server's, then what only the issuer has.
    fn keys(&self) -> Vec<KeyPlaces<'_>> {
        let own = &self.evidence.api_keys;
        let published = self.published_keys();
        let others = published.unwrap_or_default().iter();
        let others = others.filter(|key| !own.iter().any(|known| known == *key));
        let signing = self
            .evidence
            .token
            .as_ref()
            .ok()
            .and_then(|token| token.key.as_ref());
        let places = |key| KeyPlaces {
            key,
            signs: signing == Some(&key.id),
            at_api_server: own.contains(key),
            published: published.map(|keys| keys.contains(key)),
        };
        own.iter().chain(others).map(places).collect()
    }

    /// For people.
    pub fn text(&self) -> String {
        let evidence = &self.evidence;
        let mut text = format!(
            "Issuer         {}\nSaid by        {}\nDocument at    {}\n",
            shown(&evidence.issuer),
            self.source.text(),
            shown(&discovery_url(&evidence.issuer)),
        );
        for (index, file) in self.files.iter().enumerate() {
            let label = if index == 0 { "Written" } else { "" };
            let _ = writeln!(text, "{label:<15}{}", file.display());
        }
        let _ = write!(text, "\n{}\n{}", self.key_table(), self.check_table());
        for check in &self.checks {
            if let Some(finding) = &check.finding {
                let _ = write!(
                    text,
                    "\n{}: {} ({})\n  Cause  {}\n  Next   {}\n",
                    check.outcome.name(),
                    finding.reason.name(),
                    check.name,
                    finding.cause,
                    finding.next
                );
            }
        }
        text + "\n" + &self.summary()
    }

    fn key_table(&self) -> Table {
        let mut table = Table::new(&["KEY", "KIND", "BITS", "SIGNS", "API SERVER", "PUBLISHED"]);
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        for place in self.keys() {
            let key = place.key;
            let bits = match key.bits {
                0 => String::new(),
                bits => bits.to_string(),
            };
            table.row([
                shown(&key.id),
                shown(key.algorithm.as_ref().unwrap_or(&key.kind)),
                bits,
                if place.signs {
                    yes(true)
                } else {
                    String::new()
                },
                yes(place.at_api_server),
                place.published.map(yes).unwrap_or_default(),
            ]);
        }
        table
    }

    fn check_table(&self) -> Table {
        let mut table = Table::new(&["CHECK", "RESULT", "FOUND"]);
        for check in &self.checks {
            let cells = [check.name, check.outcome.name(), &check.found];
            table.row(cells.map(str::to_owned));
        }
        table
    }

    /// Whether no check is wrong.
    pub fn is_usable(&self) -> bool {
        self.count(Outcome::Wrong) == 0
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.checks
            .iter()
            .filter(|check| check.outcome == outcome)
            .count()
    }

    fn summary(&self) -> String {
        let (wrong, unknown) = (self.count(Outcome::Wrong), self.count(Outcome::Unknown));
        let all = self.checks.len();
        if !self.files.is_empty() {
            return self.publishing_steps();
        }
        match (wrong, unknown) {
            (0, 0) => "Entra can use this issuer, as far as this machine can tell.\n".to_owned(),
            (0, _) => format!(
                "Nothing is wrong, but {unknown} of {all} checks could not be made from here.\n"
            ),
            _ => format!("Entra cannot use this issuer: {wrong} of {all} checks failed.\n"),
        }
    }

    /// What follows after `--write`.
    fn publishing_steps(&self) -> String {
        let issuer = &self.evidence.issuer;
        let mut steps = vec![format!(
            "Upload both files with their folders, readable by everybody, so that they are at\n   {}\n   {}",
            shown(&discovery_url(issuer)),
            shown(&jwks_url(issuer))
        )];
        steps.push(format!(
            "Check them: podid issuer --issuer-url={}",
            shown(issuer)
        ));
        let said = match &self.evidence.token {
            Ok(token) => &token.issuer,
            Err(_) => &self.evidence.api_issuer,
        };
        if said != issuer {
            steps.push(format!(
                "Start kube-apiserver with --service-account-issuer={}, and after it the former --service-account-issuer={}",
                shown(issuer),
                shown(said)
            ));
            steps.push("Check that tokens say it: podid issuer".to_owned());
        }
        steps.push("Publish the keys anew a day before another one signs".to_owned());
        let mut text = "Next steps\n".to_owned();
        for (index, step) in steps.iter().enumerate() {
            let _ = writeln!(text, "{}. {step}", index + 1);
        }
        text
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let evidence = &self.evidence;
        let keys = self.keys().into_iter().map(|place| {
            json!({
                "id": place.key.id,
                "kind": place.key.kind,
                "algorithm": place.key.algorithm,
                "bits": place.key.bits,
                "signs": place.signs,
                "apiServer": place.at_api_server,
                "published": place.published,
            })
        });
        let checks = self.checks.iter().map(|check| {
            let finding = check.finding.as_ref();
            json!({
                "name": check.name,
                "result": check.outcome.name(),
                "found": check.found,
                "reason": finding.map(|finding| finding.reason.name()),
                "cause": finding.map(|finding| &finding.cause),
                "next": finding.map(|finding| &finding.next),
            })
        });
        json!({
            "issuer": evidence.issuer,
            "saidBy": self.source.text(),
            "usable": self.is_usable(),
            "discoveryUrl": discovery_url(&evidence.issuer),
            "tokenIssuer": evidence.token.as_ref().ok().map(|token| &token.issuer),
            "apiServerIssuer": evidence.api_issuer,
            "keys": keys.collect::<Vec<_>>(),
            "checks": checks.collect::<Vec<_>>(),
            "files": self.files,
        })
    }
}
