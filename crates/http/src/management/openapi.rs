//! The description of the API.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::{Options, reply};

/// Where it is.
pub(super) const PATH: &str = "/openapi.json";

/// Written by hand; a test compares it with the routes.
const DOCUMENT: &str = include_str!("openapi.json");

/// The description, with the server's own base path. It needs no key and holds none.
pub(super) fn answer(options: &Options) -> Response {
    let mut document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    let base = match &options.public_url {
        Some(url) => url.as_str().trim_end_matches('/'),
        None => &options.base_path,
    };
    document["servers"] = json!([{ "url": if base.is_empty() { "/" } else { base } }]);
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    if options.key.is_none() {
        document["security"] = json!([]);
    }
    reply::json(StatusCode::OK, &document)
}
