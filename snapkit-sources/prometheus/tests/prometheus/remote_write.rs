//! Samples for a server, by its own protocol (<https://prometheus.io/docs/specs/prw/remote_write_spec/>): a message of Protocol
//! Buffers, in the block format of Snappy.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use snapkit_testkit::server::PrometheusServer;

#[allow(clippy::cast_possible_truncation, reason = "seven bits at a time is the encoding")]
fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n > 0x7f {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A field that holds bytes.
fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Have a server that takes them (`--web.enable-remote-write-receiver`) add samples of one name: values, and milliseconds
/// since 1970.
pub(crate) fn write(server: &PrometheusServer, name: &str, samples: &[(f64, i64)]) {
    let mut label = Vec::new();
    field(1, b"__name__", &mut label);
    field(2, name.as_bytes(), &mut label);
    let mut series = Vec::new();
    field(1, &label, &mut series);
    for (value, at) in samples {
        let mut sample = vec![1 << 3 | 1];
        sample.extend_from_slice(&value.to_le_bytes());
        sample.push(2 << 3);
        varint(at.cast_unsigned(), &mut sample);
        field(2, &sample, &mut series);
    }
    let mut message = Vec::new();
    field(1, &series, &mut message);
    // Literals alone are Snappy, too.
    let mut body = Vec::new();
    varint(message.len() as u64, &mut body);
    for piece in message.chunks(60) {
        body.push((u8::try_from(piece.len()).unwrap() - 1) << 2);
        body.extend_from_slice(piece);
    }
    let place = server.url();
    let place = place.strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(place).unwrap();
    let head = format!(
        "POST /api/v1/write HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\nContent-Encoding: snappy\r\nContent-Type: application/x-protobuf\r\nX-Prometheus-Remote-Write-Version: 0.1.0\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(&body).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
}
