use super::*;
use std::process::Command;

use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use rstest::rstest;
use tempfile::TempDir;

const ID: &str = "6f1c0000-0000-0000-0000-0000000022ab";

/// A key and a certificate, made by the tool that people make theirs with.
fn made(arguments: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let line = format!(
        "req -x509 -newkey {arguments} -noenc -keyout key.pem -out cert.pem -days 2 -subj /CN=podid"
    );
    openssl(&folder, &line);
    folder
}

fn openssl(folder: &TempDir, line: &str) {
    let output = Command::new("openssl")
        .args(line.split(' '))
        .current_dir(folder.path())
        .output()
        .expect("openssl is missing; run tools/setup");
    assert!(
        output.status.success(),
        "openssl {line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn file(folder: &TempDir, name: &str) -> Vec<u8> {
    std::fs::read(folder.path().join(name)).unwrap()
}

fn pem(folder: &TempDir) -> Vec<u8> {
    [file(folder, "key.pem"), file(folder, "cert.pem")].concat()
}

/// What a verifier does.
fn verified(certificate: &Certificate, now: Timestamp) -> (serde_json::Value, serde_json::Value) {
    let id = ClientId::parse(ID).unwrap();
    let jwt = certificate
        .assertion(&id, "https://login/t/token", now)
        .unwrap();
    let (signed, seal) = jwt.rsplit_once('.').unwrap();
    let read = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let header: serde_json::Value = read(header);
    let der = STANDARD.decode(header["x5c"][0].as_str().unwrap()).unwrap();
    let (_, x509) = X509Certificate::from_der(&der).unwrap();
    UnparsedPublicKey::new(
        &RSA_PSS_2048_8192_SHA256,
        &x509.public_key().subject_public_key.data,
    )
    .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(seal).unwrap())
    .expect("the seal is not the certificate's");
    (header, read(claims))
}

#[rstest]
#[case::todays("-passout pass:hush", "hush")]
#[case::of_old_tools(
    "-legacy -certpbe PBE-SHA1-RC2-40 -keypbe PBE-SHA1-3DES -macalg sha1 -passout pass:hush",
    "hush"
)]
#[case::triple_des(
    "-certpbe PBE-SHA1-3DES -keypbe PBE-SHA1-3DES -macalg sha1 -passout pass:hush",
    "hush"
)]
#[case::without_password("-passout pass:", "")]
#[case::many_rounds("-iter 100000 -passout pass:hush", "hush")]
fn a_pfx_of_any_age_is_read(#[case] options: &str, #[case] password: &str) {
    let folder = made("rsa:2048");
    openssl(
        &folder,
        &format!("pkcs12 -export -inkey key.pem -in cert.pem -out c.pfx {options}"),
    );
    let certificate = Certificate::read(&file(&folder, "c.pfx"), password).unwrap();
    verified(&certificate, Timestamp::now());
    if !password.is_empty() {
        let error = Certificate::read(&file(&folder, "c.pfx"), "wrong").unwrap_err();
        assert!(matches!(error, CertificateError::WrongPassword), "{error}");
    }
}

#[test]
fn pem_is_read_in_any_order_and_with_its_issuers() {
    let folder = made("rsa:2048");
    let issuer = made("rsa:3072");
    let mixed = [
        file(&issuer, "cert.pem"),
        file(&folder, "cert.pem"),
        file(&folder, "key.pem"),
    ]
    .concat();
    let (header, claims) = verified(&Certificate::read(&mixed, "").unwrap(), Timestamp::now());
    assert_eq!(header["x5c"].as_array().unwrap().len(), 2);
    assert_eq!(header["alg"], "PS256");
    assert_eq!((&claims["iss"], &claims["sub"]), (&ID.into(), &ID.into()));
    assert_eq!(claims["aud"], "https://login/t/token");
    let life = claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap();
    assert!((60..=600).contains(&life), "{life}");

    openssl(&folder, "rsa -in key.pem -traditional -out key.pem");
    verified(
        &Certificate::read(&pem(&folder), "").unwrap(),
        Timestamp::now(),
    );
}

#[test]
fn two_assertions_are_not_the_same() {
    let certificate = Certificate::read(&pem(&made("rsa:2048")), "").unwrap();
    let now = Timestamp::now();
    assert_ne!(
        verified(&certificate, now).1["jti"],
        verified(&certificate, now).1["jti"]
    );
}

#[test]
fn what_cannot_be_used_is_explained_and_not_quoted() {
    let folder = made("rsa:2048");
    let (key, cert) = (file(&folder, "key.pem"), file(&folder, "cert.pem"));
    let other = file(&made("rsa:2048"), "cert.pem");
    let curve = pem(&made("ec -pkeyopt ec_paramgen_curve:P-256"));
    let said = |file: &[u8]| Certificate::read(file, "").unwrap_err().to_string();
    assert!(said(&cert).contains("no private key"));
    assert!(said(&key).contains("no certificate"));
    assert!(said(&[key.clone(), other].concat()).contains("no certificate"));
    assert!(said(&curve).contains("not RSA"));
    assert!(said(b"hush").contains("neither PEM"));
    assert!(said(&vec![b'x'; MAX_FILE + 1]).contains("larger"));
    assert!(said(b"").contains("neither PEM"));
    let secret = String::from_utf8_lossy(&key)
        .lines()
        .nth(1)
        .unwrap()
        .to_owned();
    let certificate = Certificate::read(&[key, cert].concat(), "").unwrap();
    assert!(!format!("{certificate:?}").contains(&secret));
}

#[test]
fn a_certificate_is_used_while_it_is_valid() {
    let certificate = Certificate::read(&pem(&made("rsa:2048")), "").unwrap();
    let id = ClientId::parse(ID).unwrap();
    let at = |seconds: i64| {
        let now = Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap();
        certificate.assertion(&id, "a", now)
    };
    assert!(at(0).is_ok());
    for seconds in [-3600, 3 * 86_400] {
        let error = at(seconds).unwrap_err();
        assert!(
            matches!(error, CertificateError::NotValidNow { .. }),
            "{error}"
        );
    }
}
