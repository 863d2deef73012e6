//! The cache without a blobferry server: it is filled over HTTP/1.1 from a server in this process.
//!
//! The first answer breaks off in the middle. The next claim continues with the bytes that have
//! arrived, and requests the rest with a `Range`. The second blob comes without a size and without
//! a digest.
//!
//!     cargo run -p blobferry-examples --bin cache_over_http

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use blobferry_cache::{Cache, CacheConfig, CachedBlob, Claim, Download};
use blobferry_protocol::{BlobId, Digest, Oid, Tid};

/// The blob that the server describes with a size and a digest. The server breaks off its first
/// answer.
const DESCRIBED: BlobId = BlobId { oid: Oid(1), tid: Tid(1) };
/// The blob that the server sends without a description, until it closes the connection.
const PLAIN: BlobId = BlobId { oid: Oid(2), tid: Tid(1) };
/// The size of each blob in bytes.
const SIZE: usize = 1 << 20;
/// Bytes that the first answer has before it breaks off.
const CUT: usize = 400_000;
/// Requests of this program: two for one blob, one for the other.
const REQUESTS: usize = 3;

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Fallible<()> {
    let home = tempfile::tempdir()?;
    let mut bytes = vec![0; SIZE];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, blob) = (listener.local_addr()?, bytes.clone());
    let server = thread::spawn(move || serve(&listener, &blob));

    let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
    let broken = load(&cache, address, DESCRIBED);
    assert!(broken.is_err_and(|error| error.to_string().contains("broke off")));
    let described = load(&cache, address, DESCRIBED)?;
    let plain = load(&cache, address, PLAIN)?;
    for cached in [described, plain] {
        assert_eq!(fs::read(cached.path())?, bytes);
        // From now on no request is needed: the server answers no fourth one.
        assert_eq!(load(&cache, address, cached.blob())?.size(), SIZE as u64);
    }
    let resumed = server.join().map_err(|_| "the server's thread panicked")??;
    assert_eq!(resumed, CUT as u64);
    println!("both blobs are in the cache; one download continued at byte {resumed}");
    Ok(())
}

/// Returns the blob from the cache, and downloads it if it is not there.
fn load(cache: &Cache, address: SocketAddr, blob: BlobId) -> Fallible<CachedBlob> {
    match cache.claim(blob)? {
        Claim::Hit(cached) => Ok(cached),
        Claim::Download(mut download) => match fill(&mut download, address) {
            Ok(cached) => Ok(cached),
            Err(error) => {
                // The next claim continues with the bytes that have arrived.
                download.leave();
                Err(error)
            }
        },
    }
}

/// Requests the bytes that the download does not have yet, and writes them to it.
fn fill(download: &mut Download, address: SocketAddr) -> Fallible<CachedBlob> {
    let from = download.resume()?;
    let mut stream = TcpStream::connect(address)?;
    let oid = download.blob().oid.0;
    write!(stream, "GET /{oid} HTTP/1.1\r\nHost: {address}\r\nRange: bytes={from}-\r\n\r\n")?;
    let mut response = BufReader::new(stream);
    let head = read_head(&mut response)?;
    let from = match head[0].split(' ').nth(1) {
        Some("206") => from,
        Some("200") => 0, // the server has ignored the range, and sends the whole blob
        _ => return Err(format!("the server answered {:?}", head[0]).into()),
    };
    let length = header(&head, "Content-Length").map(str::parse::<u64>).transpose()?;
    let digest = header(&head, "Blake3").map(blake3::Hash::from_hex).transpose()?;

    match length {
        Some(length) => download.start(from, from + length)?,
        None => download.start(from, None)?,
    }
    let copied = io::copy(&mut response, download)?;
    if length.is_some_and(|length| copied < length) {
        return Err(format!("the response broke off after {copied} bytes").into());
    }
    // Without a digest from the server, nothing verifies the bytes.
    let digest = digest.map_or_else(|| download.digest(), |digest| Digest(*digest.as_bytes()));
    Ok(download.finish(digest)?)
}

/// Reads the lines before the empty line that ends the head of a message.
fn read_head(input: &mut impl BufRead) -> io::Result<Vec<String>> {
    let lines = input.lines().take_while(|line| !line.as_ref().is_ok_and(String::is_empty));
    let head = lines.collect::<io::Result<Vec<String>>>()?;
    if head.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(head) }
}

/// Returns the value of a header.
fn header<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    let headers = head.iter().filter_map(|line| line.split_once(": "));
    headers.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

/// Answers [`REQUESTS`] requests. Returns the largest offset that a request began at.
fn serve(listener: &TcpListener, blob: &[u8]) -> io::Result<u64> {
    let mut largest = 0;
    for number in 0..REQUESTS {
        let mut stream = listener.accept()?.0;
        let head = read_head(&mut BufReader::new(&stream))?;
        let range = header(&head, "Range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let from = range.and_then(|from| from.parse().ok()).unwrap_or(0);
        largest = largest.max(from);
        let mut body = blob.get(from as usize..).unwrap_or_default();
        write!(stream, "HTTP/1.1 206 Partial Content\r\nConnection: close\r\n")?;
        if head[0].starts_with(&format!("GET /{} ", DESCRIBED.oid.0)) {
            let (length, digest) = (body.len(), blake3::hash(blob).to_hex());
            write!(stream, "Content-Length: {length}\r\nBlake3: {digest}\r\n")?;
        }
        if number == 0 {
            body = &body[..CUT];
        }
        write!(stream, "\r\n")?;
        stream.write_all(body)?;
    }
    Ok(largest)
}
