//! Whatever a client may send, sent in whatever pieces: a real `h2` server understands it, and sees
//! every field but an illegal authority as it was.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use http::uri::Authority;
use proptest::{collection::vec, prelude::*, sample::Index};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};

use super::{AuthorityFilter, FrameFilter, MAX_CONTROL, MAX_HELD, huffman};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// SETTINGS, empty.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// What a grpc-go client of a path socket sends.
const PATHS: [&str; 6] = [
    "/tmp/x/kms.sock",
    "%2Ftmp%2Fx%2Fkms.sock",
    "/",
    "/var/run/kmsplugin/a socket.sock",
    "%2F",
    "localhost/",
];

/// How one field is written.
#[derive(Debug, Clone)]
struct Field {
    name: String,
    value: String,
    huffman: bool,
    form: Form,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Incremental,
    Without,
    Never,
    /// As an index where the table has the whole field, incremental otherwise.
    Indexed,
}

#[derive(Debug, Clone)]
struct Request {
    fields: Vec<Field>,
    table_size: Option<usize>,
    cuts: Vec<Index>,
    padding: Option<u8>,
    priority: bool,
    ping_before: bool,
}

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![
        Just(Form::Incremental),
        Just(Form::Without),
        Just(Form::Never),
        Just(Form::Indexed),
    ]
}

fn field(
    name: impl Strategy<Value = String>,
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = Field> {
    (name, value, any::<bool>(), form()).prop_map(|(name, value, huffman, form)| Field {
        name,
        value,
        huffman,
        form,
    })
}

fn authority() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::sample::select(&PATHS[..]).prop_map(str::to_owned),
        1 => "/[a-z0-9/._%-]{1,120}",
        1 => Just("localhost".to_owned()),
        1 => Just("kms.example.org:443".to_owned()),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let pseudo = (
        field(Just(":method".to_owned()), Just("POST".to_owned())),
        field(Just(":scheme".to_owned()), Just("http".to_owned())),
        field(Just(":path".to_owned()), "/[a-z.]{0,20}"),
        field(Just(":authority".to_owned()), authority()),
    );
    let others = vec(field("x-[a-d]{1,3}", "[ -~]{0,300}"), 0..6);
    let table_size = prop::option::weighted(0.2, 0_usize..=4096);
    let cuts = vec(any::<Index>(), 0..4);
    let padding = prop::option::of(any::<u8>());
    (pseudo, others, table_size, cuts, padding, any::<(bool, bool)>()).prop_map(
        |(pseudo, others, table_size, cuts, padding, (priority, ping_before))| {
            let (method, scheme, path, authority) = pseudo;
            let mut fields = vec![method, scheme, path, authority];
            // as h2 trims them, so would any comparison
            fields
                .extend(others.into_iter().map(|it| Field { value: it.value.trim().into(), ..it }));
            Request { fields, table_size, cuts, padding, priority, ping_before }
        },
    )
}

/// An HPACK encoder that uses every representation on request.
struct Encoder {
    table: VecDeque<(String, String)>,
    limit: usize,
}

impl Encoder {
    fn block(&mut self, request: &Request) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(limit) = request.table_size {
            integer(&mut out, 0x20, 5, limit);
            self.limit = limit;
            self.evict();
        }
        request.fields.iter().for_each(|field| self.field(&mut out, field));
        out
    }

    fn field(&mut self, out: &mut Vec<u8>, field: &Field) {
        let position = |found: Option<usize>| found.map(|at| at + 62);
        let whole = |(name, value): &(String, String)| *name == field.name && *value == field.value;
        if let (Form::Indexed, Some(index)) =
            (field.form, position(self.table.iter().position(whole)))
        {
            return integer(out, 0x80, 7, index);
        }
        let named = self.table.iter().position(|(name, _)| *name == field.name);
        let name = match (position(named), field.name.as_str()) {
            (Some(index), _) => Some(index),
            (None, ":authority") if field.value.len().is_multiple_of(2) => Some(1),
            (None, ":path") => Some(4),
            _ => None,
        };
        match field.form {
            Form::Incremental | Form::Indexed => integer(out, 0x40, 6, name.unwrap_or(0)),
            Form::Without => integer(out, 0x00, 4, name.unwrap_or(0)),
            Form::Never => integer(out, 0x10, 4, name.unwrap_or(0)),
        }
        if name.is_none() {
            string(out, &field.name, field.huffman);
        }
        string(out, &field.value, field.huffman);
        if matches!(field.form, Form::Incremental | Form::Indexed) {
            self.table.push_front((field.name.clone(), field.value.clone()));
            self.evict();
        }
    }

    fn evict(&mut self) {
        let size = |it: &VecDeque<(String, String)>| -> usize {
            it.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
        };
        while size(&self.table) > self.limit {
            self.table.pop_back();
        }
    }
}

fn integer(out: &mut Vec<u8>, pattern: u8, prefix: u8, mut value: usize) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    value -= mask;
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
}

fn string(out: &mut Vec<u8>, text: &str, huffman: bool) {
    let coded = huffman::encode(text.as_bytes());
    // an encoder that makes it longer is none
    let huffman = huffman && coded.len() <= text.len();
    let (bytes, flag) = if huffman { (&coded[..], 0x80) } else { (text.as_bytes(), 0) };
    integer(out, flag, 7, bytes.len());
    out.extend_from_slice(bytes);
}

#[allow(clippy::too_many_arguments)] // a frame has these fields
fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// HEADERS and CONTINUATIONs for one block, with END_STREAM.
fn frames(out: &mut Vec<u8>, request: &Request, block: &[u8], stream: u32) {
    let mut cuts: Vec<_> = request.cuts.iter().map(|cut| cut.index(block.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(block.len());
    let last = cuts.len() - 1;
    let mut start = 0;
    for (at, end) in cuts.into_iter().enumerate() {
        let end_headers = if at == last { 0x04 } else { 0 };
        let part = &block[start..end];
        start = end;
        if at > 0 {
            frame(out, 9, end_headers, stream, part);
            continue;
        }
        let (mut payload, mut flags) = (Vec::new(), end_headers | 0x01);
        if let Some(padding) = request.padding {
            flags |= 0x08;
            payload.push(padding);
        }
        if request.priority {
            flags |= 0x20;
            payload.extend_from_slice(&[0, 0, 0, 0, 16]);
        }
        payload.extend_from_slice(part);
        payload.resize(payload.len() + usize::from(request.padding.unwrap_or(0)), 0);
        frame(out, 1, flags, stream, &payload);
    }
}

fn connection(requests: &[Request]) -> Vec<u8> {
    let mut out = [PREFACE, &SETTINGS].concat();
    let mut encoder = Encoder { table: VecDeque::new(), limit: 4096 };
    for (at, request) in requests.iter().enumerate() {
        if request.ping_before {
            frame(&mut out, 6, 0, 0, b"/tmp/x/k");
        }
        let block = encoder.block(request);
        frames(&mut out, request, &block, 2 * at as u32 + 1);
    }
    out
}

fn filtered(bytes: &[u8], chunks: &[usize]) -> Vec<u8> {
    let (mut filter, mut out, mut rest) = (FrameFilter::new(), Vec::new(), bytes);
    let mut sizes = chunks.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |&size| size.min(rest.len()));
        let (now, later) = rest.split_at(size);
        filter.push(now, &mut out);
        assert!(filter.held() <= MAX_HELD);
        rest = later;
    }
    filter.finish(&mut out);
    out
}

/// What an h2 server makes of the bytes, read through an [`AuthorityFilter`].
async fn served(bytes: Vec<u8>, expected: usize) -> Vec<http::request::Parts> {
    let (mut client, server) = duplex(1 << 20);
    let client = tokio::spawn(async move {
        client.write_all(&bytes).await.unwrap();
        let mut sink = Vec::new();
        let _ = client.read_to_end(&mut sink).await;
    });
    let mut connection = h2::server::handshake(AuthorityFilter::new(server)).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < expected {
        let next = tokio::time::timeout(Duration::from_secs(5), connection.accept()).await;
        let (request, mut respond) = next.expect("all requests are there").unwrap().unwrap();
        respond.send_response(http::Response::new(()), true).unwrap();
        seen.push(request.into_parts().0);
    }
    connection.abrupt_shutdown(h2::Reason::NO_ERROR);
    let _ = poll_fn(|cx| connection.poll_closed(cx)).await;
    drop(connection);
    client.await.unwrap();
    seen
}

fn check(request: &Request, seen: &http::request::Parts) {
    let value = |name: &str| {
        request.fields.iter().find(|field| field.name == name).map(|field| field.value.as_str())
    };
    let (sent, got) = (value(":authority").unwrap(), seen.uri.authority().unwrap().as_str());
    assert_eq!(sent.len(), got.len());
    if sent.parse::<Authority>().is_ok() {
        assert_eq!(sent, got);
    }
    assert_eq!(Some(seen.uri.path()), value(":path"));
    let sent: Vec<_> = request.fields[4..].iter().map(|field| &*field.value).collect();
    for field in &request.fields[4..] {
        let all: Vec<_> = seen.headers.get_all(&field.name).iter().collect();
        assert!(all.iter().any(|it| it.as_bytes() == field.value.as_bytes()), "{field:?}");
    }
    assert_eq!(seen.headers.len(), sent.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn h2_understands_every_client(requests in vec(request(), 1..6)) {
        let bytes = connection(&requests);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(served(bytes, requests.len()));
        for (request, seen) in requests.iter().zip(&seen) {
            check(request, seen);
        }
    }

    #[test]
    fn pieces_make_no_difference(
        requests in vec(request(), 1..6),
        chunks in vec(1_usize..40, 1..20),
    ) {
        let bytes = connection(&requests);
        let whole = filtered(&bytes, &[]);
        prop_assert_eq!(whole.len(), bytes.len());
        prop_assert_eq!(&filtered(&bytes, &chunks), &whole);
        prop_assert_eq!(&filtered(&bytes, &[1]), &whole);
        // filtered bytes hold nothing to filter
        prop_assert_eq!(&filtered(&whole, &[]), &whole);
    }

    #[test]
    fn any_bytes_pass_without_a_panic(bytes: Vec<u8>, chunks in vec(1_usize..40, 1..9)) {
        for bytes in [bytes.clone(), [PREFACE, &bytes].concat()] {
            let out = filtered(&bytes, &chunks);
            prop_assert_eq!(out.len(), bytes.len());
        }
    }

    #[test]
    fn damaged_connections_pass_without_a_panic(
        requests in vec(request(), 1..4),
        damage in vec((any::<Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = connection(&requests);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert_eq!(filtered(&bytes, &[7]).len(), bytes.len());
    }
}

#[test]
fn a_legal_client_passes_unchanged() {
    let field = |name: &str, value: &str| Field {
        name: name.into(),
        value: value.into(),
        huffman: true,
        form: Form::Incremental,
    };
    let request = Request {
        fields: vec![
            field(":method", "POST"),
            field(":scheme", "http"),
            field(":path", "/v2.KeyManagementService/Status"),
            field(":authority", "localhost"),
            field("x-path", "/tmp/x/kms.sock"),
        ],
        table_size: None,
        cuts: vec![],
        padding: None,
        priority: false,
        ping_before: true,
    };
    let mut bytes = connection(&[request]);
    frame(&mut bytes, 0, 1, 1, b"\x41\x0f/tmp/x/kms.sock");
    assert_eq!(filtered(&bytes, &[3]), bytes);
}

#[test]
fn http1_passes_unchanged() {
    let bytes = b"POST / HTTP/1.1\r\nHost: /tmp/x/kms.sock\r\n\r\n";
    assert_eq!(filtered(bytes, &[5]), bytes);
}

#[test]
fn a_block_without_end_is_not_held_for_ever() {
    let mut bytes = [PREFACE, &SETTINGS].concat();
    frame(&mut bytes, 1, 0, 1, &[]);
    for _ in 0..MAX_HELD / 9 + 10 {
        frame(&mut bytes, 9, 0, 1, &[]);
    }
    assert_eq!(filtered(&bytes, &[1000]), bytes);
}

#[test]
fn a_frame_too_large_to_hold_is_not_held() {
    let mut bytes = [PREFACE, &SETTINGS].concat();
    frame(&mut bytes, 1, 4, 1, &vec![0x82; MAX_HELD]);
    let (mut filter, mut out) = (FrameFilter::new(), Vec::new());
    filter.push(&bytes[..PREFACE.len() + 18], &mut out);
    assert_eq!(filter.held(), 0);
}

fn one(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame(&mut out, kind, flags, 1, payload);
    out
}

/// A filter that has seen the preface.
fn begun() -> FrameFilter {
    let mut filter = FrameFilter::new();
    filter.push(PREFACE, &mut Vec::new());
    filter
}

#[test]
fn frames_without_a_request_are_a_flood() {
    let (ping, request) = (one(6, 0, &[0; 8]), one(1, 4, &[0x82]));
    let mut filter = begun();
    let mut out = Vec::new();
    for _ in 0..3 {
        for _ in 0..MAX_CONTROL {
            filter.push(&ping, &mut out);
        }
        assert!(!filter.is_flood());
        filter.push(&request, &mut out);
    }
    assert!(filter.has_request());
    for _ in 0..=MAX_CONTROL {
        filter.push(&ping, &mut out);
    }
    assert!(filter.is_flood());
}

#[test]
fn a_head_without_end_is_a_flood_and_takes_bounded_memory() {
    for piece in [0, 1, 16 << 10] {
        let mut filter = begun();
        let mut out = Vec::new();
        filter.push(&one(1, 0, &[]), &mut out);
        let continuation = one(9, 0, &vec![0x82; piece]);
        for _ in 0..10_000 {
            filter.push(&continuation, &mut out);
            assert!(filter.held() <= MAX_HELD);
        }
        assert!(filter.is_flood() && !filter.has_request(), "{piece}");
    }
}

/// A connection that counts how often it is written to.
struct Counted<'a>(DuplexStream, &'a AtomicUsize);

impl AsyncRead for Counted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Relaxed);
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Relaxed);
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn answers_that_are_ready_together_are_written_together() {
    const ANSWERS: usize = 16;
    let (writes, (client, server)) = (AtomicUsize::new(0), duplex(1 << 20));
    let server = AuthorityFilter::new(Counted(server, &writes));
    let (client, server) =
        tokio::join!(h2::client::handshake(client), h2::server::handshake(server));
    let ((mut requests, client), mut server) = (client.unwrap(), server.unwrap());
    let client = tokio::spawn(client);
    let mut answers = Vec::new();
    for _ in 0..ANSWERS {
        let request = http::Request::post("http://localhost/a").body(()).unwrap();
        answers.push(requests.send_request(request, true).unwrap().0);
    }
    let mut waiting = Vec::new();
    while waiting.len() < ANSWERS {
        waiting.push(server.accept().await.unwrap().unwrap().1);
    }
    for answer in &mut waiting {
        let mut body = answer.send_response(http::Response::new(()), false).unwrap();
        body.send_data(bytes::Bytes::from_static(&[7; 600]), true).unwrap();
    }
    let before = writes.load(Relaxed);
    drop(requests);
    let read = async {
        for answer in answers {
            let mut body = answer.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap().len(), 600);
        }
    };
    let (closed, ()) = tokio::join!(poll_fn(|cx| server.poll_closed(cx)), read);
    closed.unwrap();
    client.await.unwrap().unwrap();
    let writes = writes.load(Relaxed) - before;
    assert!(writes <= ANSWERS / 2, "{writes} writes of {ANSWERS} answers");
}
