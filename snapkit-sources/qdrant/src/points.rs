//! What can be said of the points of a collection, by reading them.

use serde_json::Value;
use snapkit_core::Result;
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, Standing};

use crate::document::{CollectionDocument, Limits};
use crate::server::Server;

/// How many points are read at once.
const PAGE: u64 = 256;

/// What a digest begins with.
const DOMAIN: &str = "snapkit qdrant points";

/// The points of a collection.
#[derive(Clone, Debug)]
pub(crate) struct Points {
    pub(crate) count: u64,
    /// Of all of them with vectors and payloads; or why there is none.
    pub(crate) digest: Result<String, String>,
}

/// Count and read the points of a collection, at most so many.
pub(crate) async fn read(
    cx: &Context,
    server: &Server,
    name: &str,
    most: u64,
    limits: Limits,
) -> Result<Points> {
    let count = server.count(cx, name, limits).await?;
    if count > most {
        let why = format!("there are more than {most} points (`digest_points`)");
        return Ok(Points { count, digest: Err(why) });
    }
    let digest = match digest(cx, server, name, count, limits).await {
        Ok(digest) => digest,
        Err(e) => {
            cx.check()?;
            Err(e.chain())
        }
    };
    Ok(Points { count, digest })
}

/// A digest of all points, if they are that many; or why there is none.
async fn digest(
    cx: &Context,
    server: &Server,
    name: &str,
    count: u64,
    limits: Limits,
) -> Result<Result<String, String>> {
    let mut hasher = blake3::Hasher::new_derive_key(DOMAIN);
    let page = limits.page.map_or(PAGE, |most| most.clamp(1, PAGE));
    let (mut offset, mut seen): (Option<Value>, u64) = (None, 0);
    loop {
        cx.check()?;
        let page = server.scroll(cx, name, page, offset.as_ref()).await?;
        for point in &page.points {
            seen += 1;
            // Keys of objects are sorted here; how a number is written is the server's doing, both times.
            for part in ["id", "payload", "vector"] {
                let text = point[part].to_string();
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
        match page.next_page_offset.filter(|next| !next.is_null() && Some(next) != offset.as_ref())
        {
            Some(next) if seen <= count && !page.points.is_empty() => offset = Some(next),
            _ => break,
        }
    }
    Ok(match seen == count {
        true => Ok(hasher.finalize().to_hex().to_string()),
        false => Err("points came or went while they were read".to_owned()),
    })
}

/// The facts of a collection: what it is, which is known exactly, and what is in it.
pub(crate) fn tell(
    facts: &mut Facts,
    document: &CollectionDocument,
    standing: Standing,
    points: Option<(&Points, Standing)>,
) {
    let name = &document.name;
    let mut put = |what: &str, value: String| {
        let fact = snapkit_core::facts::Fact { standing, value: value.into() };
        facts.0.insert(format!("{name}.{what}"), fact);
    };
    let settings = format!("{} {}", document.settings(), document.tuning().unwrap_or_default());
    put("config", blake3::hash(settings.as_bytes()).to_hex().to_string());
    put("indexes", document.schema());
    put("aliases", document.aliases.join(", "));
    let Some((points, standing)) = points else { return };
    let mut put = |what: &str, value: snapkit_core::facts::FactValue, standing| {
        let fact = snapkit_core::facts::Fact { standing, value };
        facts.0.insert(format!("{name}.{what}"), fact);
    };
    put("points", points.count.into(), standing);
    match &points.digest {
        Ok(digest) => put("digest", digest.clone().into(), standing),
        Err(why) => put("digest", why.clone().into(), Standing::Unknown),
    }
}
