//! Addresses.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use taskhub_client::ManagementPayload;

use super::route::below;
use super::{Options, RPC_BASE, reply};

/// Where a request has come to, as its sender sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    /// The public API, without a slash at its end.
    pub(super) base: String,
    /// The request itself, with its query.
    pub(super) request: String,
}

impl Origin {
    pub(super) fn of(options: &Options, request: &Request) -> Self {
        let uri = request.uri();
        let tail = |path: &str| match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        if let Some(url) = &options.public_url {
            let base = url.as_str().trim_end_matches('/').to_owned();
            let bases = [options.base_path.as_str(), RPC_BASE];
            let path = bases.into_iter().find_map(|base| below(uri.path(), base)).unwrap_or_default();
            return Self { request: format!("{base}{}", tail(path)), base };
        }
        let headers = request.headers();
        let host = uri.authority().cloned().or_else(|| authority(headers, "host"));
        let mut scheme = uri.scheme_str().unwrap_or("http");
        let mut host = host.map_or_else(|| "localhost".to_owned(), |host| host.to_string());
        if options.use_forwarded_host
            && let Some(forwarded) = authority(headers, "x-forwarded-host")
            && let Some(proto) = forwarded_scheme(headers)
        {
            (scheme, host) = (proto, forwarded.to_string());
        }
        let origin = format!("{scheme}://{host}");
        Self {
            base: format!("{origin}{}", options.base_path),
            request: format!("{origin}{}", tail(uri.path())),
        }
    }
}

/// A host and port; the first of a list. Names with a user are not taken.
fn authority(headers: &HeaderMap, name: &str) -> Option<Authority> {
    let value = headers.get(name)?.to_str().ok()?.split(',').next()?.trim();
    value.parse().ok().filter(|authority: &Authority| !authority.as_str().contains('@'))
}

/// Whether a request names this machine itself as its host, and does not come from a page of another one.
pub(super) fn is_local(request: &Request) -> bool {
    let headers = request.headers();
    let host = request.uri().authority().cloned().or_else(|| authority(headers, "host"));
    let page = headers.get(header::ORIGIN).map(|value| {
        let host = value.to_str().ok().and_then(|text| text.parse::<Uri>().ok()?.authority().cloned());
        host.is_some_and(|host| is_loopback(&host))
    });
    host.is_some_and(|host| is_loopback(&host)) && page != Some(false)
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

fn forwarded_scheme(headers: &HeaderMap) -> Option<&'static str> {
    let value = headers.get("x-forwarded-proto")?.to_str().ok()?.split(',').next()?.trim();
    ["http", "https"].into_iter().find(|scheme| scheme.eq_ignore_ascii_case(value))
}

/// 202 with all addresses of an instance: it has not finished.
/// Source: Azure/azure-functions-durable-extension, `HttpApiHandler.CreateCheckStatusResponseMessage`.
pub(super) fn check_status(addresses: &ManagementPayload) -> Response {
    let response = reply::json(StatusCode::ACCEPTED, &addresses.to_check_status_json());
    let response = reply::with_header(response, header::LOCATION, &addresses.status_query_get_uri);
    reply::with_header(response, header::RETRY_AFTER, "10")
}
