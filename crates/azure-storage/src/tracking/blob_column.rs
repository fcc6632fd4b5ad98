//! Columns that are too large for a table row and lie in a blob instead.

use taskhub_core::IdSource;
use taskhub_storage::{Entity, Value};

use crate::message::blob_url;

/// Largest table property kept inline, in bytes of UTF-16 (two per character of the basic plane), not
/// UTF-8. Source: Azure/durabletask, `AzureTableTrackingStore.MaxTablePropertySizeInBytes`.
pub const MAX_INLINE_PROPERTY_BYTES: usize = 60 * 1024;

/// Columns that may be large. Source: Azure/durabletask,
/// `AzureTableTrackingStore.VariableSizeEntityProperties`.
pub const LARGE_COLUMNS: [&str; 9] =
    ["Name", "Input", "Result", "Output", "Reason", "Details", "Correlation", "FailureDetails", "Tags"];

/// Assumed size of a row's other columns, in bytes.
/// Source: Azure/durabletask, `AzureTableTrackingStore.GetEstimatedByteCount`.
const FIXED_ROW_BYTES: usize = 1024;

/// A blob to be uploaded before the row is written: [`crate::message::compress`] its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offloaded {
    /// Name of the blob in the hub's large-message container.
    pub blob_name: String,
    /// Text that was in the column.
    pub text: String,
}

/// Size of a text in bytes of UTF-16.
pub fn utf16_bytes(text: &str) -> usize {
    text.encode_utf16().count() * 2
}

/// Size of a row as it counts for a transaction, in bytes: 1024 and its [`LARGE_COLUMNS`].
pub fn estimated_bytes(row: &Entity) -> usize {
    FIXED_ROW_BYTES + LARGE_COLUMNS.iter().filter_map(|name| row.str(name)).map(utf16_bytes).sum::<usize>()
}

/// Takes oversized columns out of a History row: they become empty, and `{column}BlobName` says where
/// their text is.
pub fn offload_history(row: &mut Entity, ids: &dyn IdSource) -> Vec<Offloaded> {
    let event_type = row.str("EventType").unwrap_or_default().to_owned();
    oversized(row)
        .into_iter()
        .map(|(column, text)| {
            let blob_name = blob_name(row, &event_type, column, ids);
            row.set(column, "");
            row.set(blob_name_column(column), blob_name.as_str());
            Offloaded { blob_name, text }
        })
        .collect()
}

/// Takes oversized columns out of an Instances row. `Input` and `Output` become the blob's URL, which
/// every reader resolves; `Tags`, which must stay JSON, become empty with a `TagsBlobName`.
///
/// Differs: .NET does so for the output of an instance without history only; at a start it writes an
/// `InputBlobName` that it does not read back, and elsewhere the write fails for ever.
pub fn offload_instance(row: &mut Entity, container_url: &str, ids: &dyn IdSource) -> Vec<Offloaded> {
    let mut offloaded = Vec::new();
    for (column, text) in oversized(row) {
        let name = match column {
            "Input" | "Output" | "Tags" => blob_name(row, column, column, ids),
            _ => continue,
        };
        if column == "Tags" {
            row.set(column, "");
            row.set(blob_name_column(column), name.as_str());
        } else {
            row.set(column, blob_url(container_url, &name));
        }
        offloaded.push(Offloaded { blob_name: name, text });
    }
    offloaded
}

/// Columns of a row whose text is in a blob, with the names of the blobs.
pub fn references(row: &Entity) -> Vec<(&'static str, &str)> {
    let reference = |column: &'static str| {
        let blob_name = row.str(&blob_name_column(column)).filter(|name| !name.is_empty())?;
        Some((column, blob_name))
    };
    LARGE_COLUMNS.into_iter().filter_map(reference).collect()
}

/// Name of the column that says in which blob the text of `column` is.
pub fn blob_name_column(column: &str) -> String {
    format!("{column}BlobName")
}

fn oversized(row: &Entity) -> Vec<(&'static str, String)> {
    let large = |column: &'static str| match row.get(column) {
        Some(Value::String(text)) if utf16_bytes(text) > MAX_INLINE_PROPERTY_BYTES => {
            Some((column, text.clone()))
        }
        _ => None,
    };
    LARGE_COLUMNS.into_iter().filter_map(large).collect()
}

/// `{escaped id}/history-{row key}-{event type}-{8 random hex digits}-{column}.json.gz`. The random number
/// keeps two workers that both believe to own the instance from overwriting each other's blobs.
fn blob_name(row: &Entity, event_type: &str, column: &str, ids: &dyn IdSource) -> String {
    let random = ids.random() & 0x7fff_ffff;
    format!("{}/history-{}-{event_type}-{random:08X}-{column}.json.gz", row.partition_key, row.row_key)
}

#[cfg(test)]
mod tests {
    use taskhub_core::SeededIds;

    use super::*;

    fn row(column: &'static str, text: &str) -> Entity {
        Entity::new("order^042", "000000000000000A").with("EventType", "TaskCompleted").with(column, text)
    }

    #[test]
    fn columns_above_60_kib_of_utf16_are_offloaded() {
        let ids = SeededIds::new(1);
        for (text, offloaded) in [
            ("x".repeat(30_720), false),
            ("x".repeat(30_721), true),
            ("é".repeat(30_720), false),
            ("😀".repeat(15_360), false),
            ("😀".repeat(15_360) + "x", true),
        ] {
            let mut row = row("Result", &text);
            let blobs = offload_history(&mut row, &ids);
            assert_eq!(blobs.len(), usize::from(offloaded));
            assert_eq!(row.str("Result") == Some(""), offloaded);
            assert_eq!(row.str("ResultBlobName"), blobs.first().map(|blob| blob.blob_name.as_str()));
            assert!(blobs.iter().all(|blob| blob.text == text));
        }
    }

    #[test]
    fn blobs_are_named_after_row_event_and_column() {
        let mut row = row("Result", &"x".repeat(40_000));
        let blobs = offload_history(&mut row, &SeededIds::new(7));
        let name = blobs[0].blob_name.clone();
        let (start, rest) = name.split_at("order^042/history-000000000000000A-TaskCompleted-".len());
        assert_eq!(start, "order^042/history-000000000000000A-TaskCompleted-");
        let (random, end) = rest.split_at(8);
        assert!(random.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)), "{random}");
        assert!(random < "80000000");
        assert_eq!(end, "-Result.json.gz");
        assert_eq!(references(&row), [("Result", name.as_str())]);
    }

    #[test]
    fn only_the_nine_columns_are_offloaded() {
        let large = "x".repeat(40_000);
        for column in LARGE_COLUMNS {
            assert_eq!(offload_history(&mut row(column, &large), &SeededIds::new(1)).len(), 1, "{column}");
        }
        for column in ["CustomStatus", "Version", "OrchestrationInstance", "Data"] {
            assert!(offload_history(&mut row(column, &large), &SeededIds::new(1)).is_empty(), "{column}");
        }
    }

    #[test]
    fn instances_rows_refer_to_inputs_and_outputs_by_url() {
        let large = "x".repeat(40_000);
        let mut row = Entity::new("order-42", "");
        for column in ["Input", "Output", "Tags", "Name"] {
            row.set(column, large.as_str());
        }
        let blobs = offload_instance(&mut row, "http://h/myhub-largemessages", &SeededIds::new(1));
        assert_eq!(blobs.len(), 3);
        assert!(blobs[0].blob_name.starts_with("order-42/history--Input-"), "{}", blobs[0].blob_name);
        let input = row.str("Input").unwrap();
        assert!(input.starts_with("http://h/myhub-largemessages/order-42/history--Input-"), "{input}");
        assert_eq!(row.get("InputBlobName"), None);
        assert_eq!(row.str("Tags"), Some(""));
        assert_eq!(references(&row), [("Tags", blobs[2].blob_name.as_str())]);
        assert_eq!(row.str("Name"), Some(large.as_str()));
    }

    #[test]
    fn the_size_of_a_row_counts_utf16() {
        assert_eq!(estimated_bytes(&row("Version", "1.0")), 1024);
        assert_eq!(estimated_bytes(&row("Input", "é😀")), 1024 + 6);
    }
}
