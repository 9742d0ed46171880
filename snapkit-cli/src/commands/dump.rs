//! `snapkit dump`: an artifact or a file to standard output.

use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ByteStream, Shape};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::tree::EntryPath;

use crate::app::App;
use crate::args::ScopeArgs;
use crate::exit::Exit;
use crate::output;
use crate::spec::{Named, Spec, artifact_names, no_entry};

/// Write an artifact or a file to standard output
///
/// Every byte is checked before it is written. With --json too, what is written is the content. The artifact
/// may be left out where the source has only one: `latest:app` is `latest:app/app.db`.
#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// An artifact, or a file in one that is a tree
    #[arg(value_name = "SNAPSHOT:SOURCE[/ARTIFACT][/PATH]")]
    place: String,
    #[command(flatten)]
    scope: ScopeArgs,
}

pub(crate) async fn run(app: &App, args: DumpArgs) -> Result<Exit> {
    let spec = Spec::parse(&args.place)?;
    let scope = app.scope(&args.scope)?;
    if spec.source.is_none() {
        return Err(Error::invalid(
            "what to write must be named: SNAPSHOT:SOURCE[/ARTIFACT][/PATH]",
        )
        .with("given", &args.place));
    }
    let cx = &app.cx;
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let snapshot = app.snapshot(&repository, &ledger, &spec.snapshot, &scope).await?;
    let Some(named) = spec.find(&snapshot)? else { return Ok(Exit::Done) };
    let artifact = match (named.artifact, named.source.artifacts.as_slice()) {
        (Some(artifact), _) | (None, [artifact]) => artifact,
        (None, []) => {
            let what = format!("the source {} has nothing in this snapshot", named.source.name);
            return Err(Error::new(Reason::NotFound, what));
        }
        (None, _) => {
            return Err(Error::invalid(format!(
                "the source {} has several artifacts, one must be named: {}",
                named.source.name,
                artifact_names(named.source)
            )));
        }
    };
    let content = match &named.path {
        Some(path) => {
            repository.open_file(cx, artifact, path).await.map_err(|e| no_file(e, path, &named))?
        }
        None => repository.open_artifact(cx, artifact).await?.into_bytes().map_err(|_| {
            Error::invalid(match artifact.meta.shape {
                Shape::Records => "this is a sequence of records: use `snapkit restore`",
                _ => "this is a tree: name a file in it, or use `snapkit restore`",
            })
            .with("given", &args.place)
        })?,
    };
    write(app, content).await?;
    Ok(Exit::Done)
}

/// What is there instead of a file, in a word instead of a letter.
fn no_file(error: Error, path: &EntryPath, named: &Named<'_>) -> Error {
    if error.reason() == Reason::NotFound {
        return no_entry(path, &named.place());
    }
    let kind = error.context().iter().find(|(key, _)| *key == "kind");
    let what = match kind.map(|(_, letter)| letter.as_str()) {
        Some("d") => "a directory",
        Some("l") => "a symbolic link",
        Some("p") => "a named pipe",
        Some("s") => "a socket",
        Some("c" | "b") => "a device",
        _ => return error,
    };
    Error::invalid(format!("{path} is {what}, and only files have content to write"))
}

async fn write(app: &App, mut content: ByteStream) -> Result<()> {
    let cx = &app.cx;
    let mut is_safe = !output::stdout_is_terminal();
    while let Some(piece) = cx.run(content.try_next()).await? {
        if !is_safe && is_binary(&piece) {
            return Err(Error::invalid("binary content is not written to a terminal: redirect it"));
        }
        is_safe = true;
        // A reader that is slow must not keep a signal from being heard.
        let output = Arc::clone(&app.output);
        cx.run(cx.blocking(move || {
            output.bytes(&piece);
            Ok(())
        }))
        .await?;
        if app.output.is_closed() {
            break;
        }
    }
    if app.output.has_lost_its_reader() {
        // What was read of it is not all of it, and a pipeline would take it for that.
        let what = "standard output was closed before all was written to it";
        return Err(Error::new(Reason::Io, what).with_hint(""));
    }
    Ok(())
}

/// Whether a terminal would take content for something else than text.
fn is_binary(piece: &Bytes) -> bool {
    piece.iter().any(|b| b.is_ascii_control() && !matches!(b, b'\n' | b'\r' | b'\t'))
}
