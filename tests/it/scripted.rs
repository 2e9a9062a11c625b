//! A server of HTTP/1.1 that answers as a test says, and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub method: String,
    /// Path and query, as they came.
    pub target: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter();
        let found = found.find(|(it, _)| it.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    /// The value of a name of the query, decoded.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let url = url::Url::parse(&format!("http://scripted{}", self.target)).unwrap();
        let mut pairs = url.query_pairs();
        let found = pairs.find(|(key, _)| key == name);
        found.map(|(_, value)| value.into_owned())
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An object of S3, or the range of it that is asked for.
    pub(crate) fn object(asked: &Asked, bytes: &[u8]) -> Self {
        let range = asked.header("range");
        let range = range.and_then(|it| it.strip_prefix("bytes=")?.split_once('-'));
        let reply = match range {
            Some((first, last)) => {
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                let last = last.min(bytes.len() - 1);
                let range = format!("bytes {first}-{last}/{}", bytes.len());
                Self::new(206, &bytes[first..=last]).with("content-range", &range)
            }
            None => Self::new(200, bytes),
        };
        reply
            .with("last-modified", "Sat, 28 Nov 2026 20:00:00 GMT")
            .with("etag", "\"x\"")
    }
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

/// The server. Its threads end with the test's process, or when their connections do.
#[derive(Clone)]
pub(crate) struct Scripted {
    /// "127.0.0.1:port".
    pub host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scripted {
    pub(crate) fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            host: listener.local_addr().unwrap().to_string(),
            asked: Arc::default(),
        };
        let (script, asked): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&server.asked));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (script, asked) = (Arc::clone(&script), Arc::clone(&asked));
                std::thread::spawn(move || serve(connection.unwrap(), &script, &asked));
            }
        });
        server
    }

    /// All that it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(connection: TcpStream, script: &Arc<Script>, all: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(connection);
    while let Some(asked) = read(&mut reader) {
        all.lock().unwrap().push(asked.clone());
        let Reply {
            status,
            headers,
            body,
        } = script(&asked);
        let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
        let has_length = |(name, _): &(String, String)| name == "content-length";
        if !headers.iter().any(has_length) {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let body = match asked.method.as_str() {
            "HEAD" => Vec::new(),
            _ => body,
        };
        let answer = [format!("{head}\r\n").as_bytes(), &body].concat();
        if reader.get_mut().write_all(&answer).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    // What greets otherwise, such as with TLS, gets no answer.
    let first = *reader.fill_buf().ok()?.first()?;
    if !first.is_ascii_uppercase() {
        return None;
    }
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut asked = Asked {
        method,
        target,
        headers,
        body: Vec::new(),
    };
    let length = asked.header("content-length").map(str::parse);
    asked.body = vec![0; length.map_or(0, Result::unwrap)];
    reader.read_exact(&mut asked.body).ok()?;
    Some(asked)
}
