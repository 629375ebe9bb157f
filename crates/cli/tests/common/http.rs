//! A server of HTTP that has one file, and manners.

#![allow(dead_code, missing_docs, reason = "each test uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// How a server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Ranges,
    Whole,
    /// Every third answer is cut off.
    CutsSome,
    /// All bodies are cut off.
    Cuts,
    /// Another tag with every answer.
    Changes,
    Status(u16),
    /// Says that it sends a range, and sends all.
    Lies,
    /// Answers when it has other manners.
    Holds,
}

pub struct Server {
    pub address: String,
    manner: Arc<Mutex<Manner>>,
    pub sent_bytes: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
}

impl Server {
    /// Serves one file under any path, until the test ends.
    pub fn new(file: Vec<u8>) -> Self {
        Self::with(file, None)
    }

    /// The same with TLS, for the name `localhost`. Returns the certificate of its authority too, which nobody knows.
    pub fn with_tls(file: Vec<u8>) -> (Self, String) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut about = CertificateParams::new(Vec::new()).unwrap();
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority_pem = about.self_signed(&key).unwrap().pem();
        let authority = Issuer::new(about, key);
        let key = KeyPair::generate().unwrap();
        let about = CertificateParams::new(vec!["localhost".into()]).unwrap();
        let certificate = about.signed_by(&key, &authority).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        (Self::with(file, Some(Arc::new(tls))), authority_pem)
    }

    fn with(file: Vec<u8>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let manner = Arc::new(Mutex::new(Manner::Ranges));
        let (sent_bytes, requests) = (Arc::default(), Arc::default());
        let server = Self { address, manner, sent_bytes, requests };
        let shared = (server.manner.clone(), server.sent_bytes.clone(), server.requests.clone());
        let file = Arc::new(file);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, file, shared) = (client.unwrap(), file.clone(), shared.clone());
                let tls = tls.clone();
                std::thread::spawn(move || match tls {
                    None => answer(client, &file, &shared),
                    Some(tls) => {
                        let tls = ServerConnection::new(tls).unwrap();
                        answer(StreamOwned::new(tls, client), &file, &shared)
                    }
                });
            }
        });
        server
    }

    pub fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://{}/dir/{name}?token=secret", self.address)
    }
}

type Shared = (Arc<Mutex<Manner>>, Arc<AtomicUsize>, Arc<AtomicUsize>);

/// Answers the requests of one connection. It ends with an error when the client has gone.
fn answer(client: impl Read + Write, file: &[u8], (manner, sent, requests): &Shared) -> Option<()> {
    let mut lines = BufReader::new(client);
    loop {
        let mut range = None;
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                let (first, last) = text.trim().split_once('-')?;
                let last: usize = last.parse().ok()?;
                range = Some((first.parse::<usize>().ok()?, last.min(file.len() - 1)));
            }
            if line == "\r\n" {
                break;
            }
        }
        let client = lines.get_mut();
        let count = requests.fetch_add(1, Ordering::Relaxed);
        let manner = loop {
            match *manner.lock().unwrap() {
                Manner::Holds => {}
                manner => break manner,
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        if let Manner::Status(status) = manner {
            client
                .write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes())
                .ok()?;
            continue;
        }
        let tag = if manner == Manner::Changes { count } else { 0 };
        let (status, body, more) = match range {
            Some((first, last)) if manner != Manner::Whole => {
                let body = if manner == Manner::Lies { file } else { &file[first..=last] };
                (206, body, format!("Content-Range: bytes {first}-{last}/{}\r\n", file.len()))
            }
            _ => (200, file, String::new()),
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\nETag: \"{tag}\"\r\nContent-Length: {length}\r\n{more}\r\n"
        );
        client.write_all(head.as_bytes()).ok()?;
        let cut = manner == Manner::Cuts || manner == Manner::CutsSome && count % 3 == 2;
        let body = if cut { &body[..length / 2] } else { body };
        client.write_all(body).ok()?;
        sent.fetch_add(body.len(), Ordering::Relaxed);
        if cut {
            return None;
        }
    }
}
