//! Standard input as a source.

use std::sync::Arc;

use bytes::BytesMut;
use futures_util::stream;
use snapkit_core::artifact::{ArtifactName, ByteStream, SourceName};
use snapkit_core::engine::Stack;
use snapkit_core::error::{Error, IoContext as _, Result};
use snapkit_sources::stream::{Stream, StreamConfig};
use tokio::io::AsyncReadExt as _;

use crate::output;

/// How much is read at once.
const PIECE: usize = 256 << 10;

/// A stack that is standard input.
pub(crate) fn stack(name: &str, file: &str, host: String) -> Result<Stack> {
    if output::stdin_is_terminal() {
        return Err(Error::invalid(
            "standard input is a terminal: pipe something into it, such as `pg_dump shop | snapkit create --stdin shop.sql`",
        ));
    }
    let config = StreamConfig { file: ArtifactName::new(file)? };
    let source = crate::spec::source_name(file)?;
    let name: String = SourceName::new(name)?.into();
    Ok(Stack::new(name, host, vec![Arc::new(Stream::new(source, config, input())?)]))
}

fn input() -> ByteStream {
    let state = (tokio::io::stdin(), BytesMut::new());
    Box::pin(stream::try_unfold(state, async |(mut stdin, mut buffer)| {
        buffer.reserve(PIECE);
        let read = (&mut stdin).take(PIECE as u64).read_buf(&mut buffer).await;
        let read = read.doing(|| "cannot read standard input".to_owned())?;
        Ok((read > 0).then(|| (buffer.split().freeze(), (stdin, buffer))))
    }))
}
