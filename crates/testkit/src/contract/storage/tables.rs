//! Tables.

use std::time::Duration;

use taskhub_core::Timestamp;
use taskhub_storage::{
    Condition, ETag, Entity, ErrorKind, StorageAccount, TableOperation as Op, TableQuery, Value,
    quote_filter_text,
};
use uuid::Uuid;

use super::refused;

/// A new table.
async fn table(account: &StorageAccount, prefix: &str) -> String {
    let name = format!("{prefix}Table");
    assert!(account.tables.create_table(&name).await.unwrap());
    name
}

fn row(row_key: &str) -> Entity {
    Entity::new("p", row_key).with("Name", row_key)
}

async fn insert(account: &StorageAccount, table: &str, entity: Entity) -> ETag {
    account.tables.execute(table, Op::Insert(entity)).await.unwrap().expect("a version")
}

async fn get(account: &StorageAccount, table: &str, row_key: &str) -> Option<Entity> {
    account.tables.get_entity(table, "p", row_key).await.unwrap()
}

fn delete(row_key: &str, condition: Condition) -> Op {
    Op::Delete { partition_key: "p".to_owned(), row_key: row_key.to_owned(), condition }
}

/// Row keys of all rows that match, over all pages.
async fn matching(account: &StorageAccount, table: &str, filter: &str) -> Vec<String> {
    let mut query = TableQuery { filter: Some(filter.to_owned()), ..TableQuery::default() };
    let mut found = Vec::new();
    loop {
        let page = account.tables.query(table, &query).await.unwrap_or_else(|e| panic!("{filter}: {e}"));
        found.extend(page.entities.into_iter().map(|entity| entity.row_key));
        query.continuation = page.continuation;
        if query.continuation.is_none() {
            return found;
        }
    }
}

/// Create, list, delete.
pub async fn a_table_is_created_once_listed_ignoring_case_and_deleted(
    account: &StorageAccount,
    prefix: &str,
) {
    let tables = &account.tables;
    let (a, b) = (format!("{prefix}Alpha"), format!("{prefix}Beta"));
    assert!(tables.create_table(&b).await.unwrap());
    assert!(tables.create_table(&a).await.unwrap());
    assert!(!tables.create_table(&a).await.unwrap(), "it exists");
    assert!(!tables.create_table(&a.to_uppercase()).await.unwrap(), "case does not count");
    let listed = tables.list_tables(&prefix.to_uppercase()).await.unwrap();
    assert_eq!(listed, [a.clone(), b.clone()], "case is kept");
    tables.delete_table(&a).await.unwrap();
    assert_eq!(tables.list_tables(prefix).await.unwrap(), [b]);
    refused(tables.create_table("1-x").await, ErrorKind::Invalid, 400, "InvalidResourceName");
}

/// Every method but create and list.
pub async fn a_missing_table_is_not_found(account: &StorageAccount, prefix: &str) {
    let tables = &account.tables;
    let name = format!("{prefix}Missing");
    for operation in [
        Op::Insert(row("r")),
        Op::Replace(row("r"), Condition::Any),
        Op::Merge(row("r"), Condition::Any),
        Op::InsertOrReplace(row("r")),
        Op::InsertOrMerge(row("r")),
        delete("r", Condition::Any),
    ] {
        let outcome = tables.execute(&name, operation.clone()).await;
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound, "{operation:?}");
    }
    let outcome = tables.transaction(&name, &[Op::Insert(row("r"))]).await;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(tables.delete_table(&name).await.unwrap_err().kind(), ErrorKind::NotFound);
    let outcome = tables.query(&name, &TableQuery::default()).await;
    refused(outcome, ErrorKind::NotFound, 404, "TableNotFound");
    let outcome = tables.get_entity(&name, "p", "r").await;
    refused(outcome, ErrorKind::NotFound, 404, "TableNotFound");
}

/// All EDM types, by a read and by a query.
pub async fn every_type_of_value_survives(account: &StorageAccount, prefix: &str) {
    let name = table(account, prefix).await;
    let mut entity = row("types")
        .with("Text", "O'Brien \u{e9}\u{4e2d}\u{1f600} \"quoted\" <xml> \\ /")
        .with("Empty", "")
        .with("Flag", true)
        .with("Small", -7)
        .with("At", Timestamp::parse("2026-01-15T09:30:00.1234567Z").unwrap());
    entity.set("Large", Value::Int64(i64::MIN));
    entity.set("Whole", Value::Double(2.0));
    entity.set("Ratio", Value::Double(0.1));
    entity.set("Id", Value::Guid(Uuid::from_u128(0x0f8f_ad5b_d9cb_469f_a165_7086_7728_950e)));
    entity.set("Data", Value::Binary(vec![0, 1, 254, 255]));
    let etag = insert(account, &name, entity.clone()).await;

    let read = get(account, &name, "types").await.unwrap();
    assert_eq!(read.columns, entity.columns);
    assert_eq!((read.partition_key.as_str(), read.row_key.as_str()), ("p", "types"));
    assert_eq!(read.etag, Some(etag));
    assert!(read.timestamp.unwrap() > Timestamp::parse("2020-01-01").unwrap());
    let page = account.tables.query(&name, &TableQuery::default()).await.unwrap();
    assert_eq!(page.entities, [read]);
}

/// Keys in URLs, filters and group transactions.
pub async fn keys_with_special_characters_survive(account: &StorageAccount, prefix: &str) {
    let name = table(account, prefix).await;
    for key in
        ["it's", "''", "a b+c%20", "@entity@key", "x:y&z=1,()", "|<>\"^~[]{}`", "\u{e9}\u{4e2d}\u{1f600}", ""]
    {
        let tables = &account.tables;
        let entity = Entity::new(key, key).with("Name", key);
        insert(account, &name, entity.clone()).await;
        let read = tables.get_entity(&name, key, key).await.unwrap().expect(key);
        assert_eq!(
            (read.partition_key.as_str(), read.row_key.as_str(), read.str("Name")),
            (key, key, Some(key))
        );
        let filter = format!("PartitionKey eq {0} and RowKey eq {0}", quote_filter_text(key));
        assert_eq!(matching(account, &name, &filter).await, [key]);
        let changed = entity.clone().with("Name", "changed");
        tables.transaction(&name, &[Op::Replace(changed, Condition::Any)]).await.unwrap();
        let read = tables.get_entity(&name, key, key).await.unwrap().expect(key);
        assert_eq!(read.str("Name"), Some("changed"), "{key}");
        let condition = Condition::Matches(read.etag.unwrap());
        let delete = Op::Delete { partition_key: key.to_owned(), row_key: key.to_owned(), condition };
        assert_eq!(tables.execute(&name, delete).await.unwrap(), None);
        assert_eq!(tables.get_entity(&name, key, key).await.unwrap(), None, "{key}");
    }
}

/// Insert.
pub async fn an_insert_fails_when_the_row_exists(account: &StorageAccount, prefix: &str) {
    let name = table(account, prefix).await;
    insert(account, &name, row("r").with("Old", 1)).await;
    let again = account.tables.execute(&name, Op::Insert(row("r"))).await;
    refused(again, ErrorKind::AlreadyExists, 409, "EntityAlreadyExists");
    assert_eq!(get(account, &name, "r").await.unwrap().get("Old"), Some(&Value::Int32(1)));
}

/// 404 and 412.
pub async fn replace_and_merge_need_the_row_and_its_version(account: &StorageAccount, prefix: &str) {
    let tables = &account.tables;
    let name = table(account, prefix).await;
    let first = insert(account, &name, row("r")).await;
    type Make = fn(Entity, Condition) -> Op;
    for make in [Op::Replace as Make, Op::Merge as Make] {
        let missing = tables.execute(&name, make(row("missing"), Condition::Any)).await;
        refused(missing, ErrorKind::NotFound, 404, "ResourceNotFound");
        let missing = tables.execute(&name, make(row("missing"), Condition::Matches(first.clone()))).await;
        refused(missing, ErrorKind::NotFound, 404, "ResourceNotFound");
        let current = get(account, &name, "r").await.unwrap().etag.unwrap();
        let next = tables.execute(&name, make(row("r"), Condition::Matches(current.clone()))).await.unwrap();
        assert_ne!(next.as_ref(), Some(&current), "a write makes a new version");
        assert_eq!(get(account, &name, "r").await.unwrap().etag, next);
        let stale = tables.execute(&name, make(row("r").with("Bad", 1), Condition::Matches(current))).await;
        refused(stale, ErrorKind::Conflict, 412, "UpdateConditionNotSatisfied");
        tables.execute(&name, make(row("r"), Condition::Any)).await.unwrap();
        assert_eq!(get(account, &name, "r").await.unwrap().get("Bad"), None);
    }
}

/// The difference of the two.
pub async fn a_merge_keeps_other_columns_and_a_replace_does_not(account: &StorageAccount, prefix: &str) {
    let name = table(account, prefix).await;
    insert(account, &name, row("r").with("Kept", 1).with("Changed", 1)).await;
    let patch = Entity::new("p", "r").with("Changed", "two").with("Added", true);
    account.tables.execute(&name, Op::Merge(patch, Condition::Any)).await.unwrap();
    let read = get(account, &name, "r").await.unwrap();
    assert_eq!(read.get("Kept"), Some(&Value::Int32(1)));
    assert_eq!((read.str("Changed"), read.get("Added")), (Some("two"), Some(&Value::Bool(true))));
    account.tables.execute(&name, Op::Replace(row("r"), Condition::Any)).await.unwrap();
    assert_eq!(get(account, &name, "r").await.unwrap().columns, row("r").columns);
}

/// Insert or replace, insert or merge.
pub async fn upserts_need_nothing(account: &StorageAccount, prefix: &str) {
    let tables = &account.tables;
    let name = table(account, prefix).await;
    tables.execute(&name, Op::InsertOrMerge(row("m").with("A", 1))).await.unwrap();
    tables.execute(&name, Op::InsertOrMerge(row("m").with("B", 2))).await.unwrap();
    assert_eq!(get(account, &name, "m").await.unwrap().columns.len(), 3);
    tables.execute(&name, Op::InsertOrReplace(row("r").with("A", 1))).await.unwrap();
    let etag = tables.execute(&name, Op::InsertOrReplace(row("r").with("B", 2))).await.unwrap();
    let read = get(account, &name, "r").await.unwrap();
    assert_eq!((read.get("A"), &read.etag), (None, &etag));
}

/// Delete.
pub async fn a_delete_needs_the_row_and_its_version(account: &StorageAccount, prefix: &str) {
    let tables = &account.tables;
    let name = table(account, prefix).await;
    let missing = tables.execute(&name, delete("r", Condition::Any)).await;
    refused(missing, ErrorKind::NotFound, 404, "ResourceNotFound");
    let old = insert(account, &name, row("r")).await;
    tables.execute(&name, Op::Merge(row("r"), Condition::Any)).await.unwrap();
    let stale = tables.execute(&name, delete("r", Condition::Matches(old))).await;
    refused(stale, ErrorKind::Conflict, 412, "UpdateConditionNotSatisfied");
    tables.execute(&name, delete("r", Condition::Any)).await.unwrap();
    assert_eq!(get(account, &name, "r").await, None);
}

/// Group transactions.
pub async fn a_transaction_is_all_or_nothing(account: &StorageAccount, prefix: &str) {
    let tables = &account.tables;
    let name = table(account, prefix).await;
    let old = insert(account, &name, row("replace")).await;
    insert(account, &name, row("merge").with("Kept", 1)).await;
    insert(account, &name, row("delete")).await;
    let operations = vec![
        Op::Insert(row("insert").with("Text", "a\r\nb --batch\n{}")),
        Op::Replace(row("replace").with("New", 1), Condition::Matches(old.clone())),
        Op::Merge(row("merge").with("New", 1), Condition::Any),
        Op::InsertOrReplace(row("upsert")),
        Op::InsertOrMerge(row("it's")),
        delete("delete", Condition::Any),
    ];
    let etags = tables.transaction(&name, &operations).await.unwrap();
    let keys = ["insert", "replace", "merge", "upsert", "it's"];
    assert_eq!(etags.len(), 6);
    for (key, etag) in keys.iter().zip(&etags) {
        assert!(etag.is_some());
        assert_eq!(&get(account, &name, key).await.unwrap().etag, etag, "{key}");
    }
    assert_eq!((&etags[5], get(account, &name, "delete").await), (&None, None));
    assert_eq!(get(account, &name, "merge").await.unwrap().columns.len(), 3);

    let failing = [
        (Op::Insert(row("merge")), ErrorKind::AlreadyExists, 409, "EntityAlreadyExists"),
        (
            Op::Replace(row("replace"), Condition::Matches(old.clone())),
            ErrorKind::Conflict,
            412,
            "UpdateConditionNotSatisfied",
        ),
        (delete("replace", Condition::Matches(old)), ErrorKind::Conflict, 412, "UpdateConditionNotSatisfied"),
        (Op::Merge(row("missing"), Condition::Any), ErrorKind::NotFound, 404, "ResourceNotFound"),
        (delete("missing", Condition::Any), ErrorKind::NotFound, 404, "ResourceNotFound"),
    ];
    for (operation, kind, status, code) in failing {
        let operations = vec![Op::Insert(row("x")), operation, Op::Insert(row("y"))];
        let error = refused(tables.transaction(&name, &operations).await, kind, status, code);
        assert!(error.to_string().starts_with("1: "), "the index of the operation: {error}");
        assert_eq!(get(account, &name, "x").await, None);
    }
    let hundred = (0..100).map(|n| Op::InsertOrReplace(row(&format!("n{n:03}")))).collect::<Vec<_>>();
    assert_eq!(tables.transaction(&name, &hundred).await.unwrap().len(), 100);
}

/// 100 operations, one partition, each row once, 4 MiB.
pub async fn transactions_have_limits(account: &StorageAccount, prefix: &str) {
    let tables = &account.tables;
    let name = table(account, prefix).await;
    let many: Vec<Op> = (0..101).map(|n| Op::Insert(row(&n.to_string()))).collect();
    let big = "x".repeat(30_000);
    let wide = |n: u32| {
        (0..17).fold(row(&n.to_string()), |entity, column| entity.with(format!("C{column}"), big.as_str()))
    };
    for (operations, status, code) in [
        (vec![], 400, "InvalidInput"),
        (many, 400, "InvalidInput"),
        (vec![Op::Insert(row("a")), Op::Insert(row("a"))], 400, "InvalidDuplicateRow"),
        (
            vec![Op::Insert(row("a")), Op::Insert(Entity::new("q", "b"))],
            400,
            "CommandsInBatchActOnDifferentPartitions",
        ),
        ((0..9).map(|n| Op::Insert(wide(n))).collect(), 413, "RequestBodyTooLarge"),
    ] {
        refused(tables.transaction(&name, &operations).await, ErrorKind::Invalid, status, code);
    }
    tables.transaction(&name, &(0..7).map(|n| Op::Insert(wide(n))).collect::<Vec<_>>()).await.unwrap();
}

/// Checked before anything is sent, because the emulator does not.
pub async fn keys_and_values_have_limits(account: &StorageAccount, prefix: &str) {
    let tables = &account.tables;
    let name = table(account, prefix).await;
    let long = "x".repeat(32 * 1024 + 1);
    let long_key = "k".repeat(513);
    for key in ["a/b", "a\\b", "a#b", "a?b", "a\u{1}b", "a\u{7f}b"] {
        let outcome = tables.execute(&name, Op::InsertOrReplace(row(key))).await;
        refused(outcome, ErrorKind::Invalid, 400, "InvalidInput");
        refused(tables.get_entity(&name, "p", key).await, ErrorKind::Invalid, 400, "InvalidInput");
        let outcome = tables.transaction(&name, &[delete(key, Condition::Any)]).await;
        refused(outcome, ErrorKind::Invalid, 400, "InvalidInput");
    }
    for (entity, code) in [
        (row(&long_key), "PropertyValueTooLarge"),
        (row("r").with("Long", long.as_str()), "PropertyValueTooLarge"),
        (row("r").with("no name", 1), "PropertyNameInvalid"),
        (row("r").with("Early", Value::DateTime(Timestamp::MIN)), "OutOfRangeInput"),
        ((0..17).fold(row("r"), |e, n| e.with(format!("C{n}"), &long[1..])), "EntityTooLarge"),
        ((0..253).fold(Entity::new("p", "r"), |e, n| e.with(format!("C{n}"), n)), "TooManyProperties"),
    ] {
        refused(tables.execute(&name, Op::Insert(entity)).await, ErrorKind::Invalid, 400, code);
    }
    insert(account, &name, row(&long_key[1..]).with("Long", &long[1..])).await;
}

/// Ordinal order, partition first.
pub async fn rows_come_in_key_order(account: &StorageAccount, prefix: &str) {
    let name = table(account, prefix).await;
    for (partition_key, row_key) in [("b", "1"), ("a", "b"), ("a", "B"), ("a", "10"), ("a", "9"), ("A", "z")]
    {
        insert(account, &name, Entity::new(partition_key, row_key)).await;
    }
    assert_eq!(matching(account, &name, "").await, ["z", "10", "9", "B", "b", "1"]);
}

/// Pages and continuation tokens.
pub async fn pages_go_on_where_the_last_ended(account: &StorageAccount, prefix: &str) {
    let name = table(account, prefix).await;
    let mut expected = Vec::new();
    for partition_key in ["p 1", "p'2"] {
        for n in 0..5 {
            let key = format!("{partition_key} r{n}");
            insert(account, &name, Entity::new(partition_key, &key).with("N", n)).await;
            expected.push(key);
        }
    }
    for (top, filter) in
        [(Some(1), None), (Some(3), None), (Some(10), None), (None, None), (Some(2), Some("N ne 9"))]
    {
        let filter = filter.map(str::to_owned);
        let mut query = TableQuery { top, filter, ..TableQuery::default() };
        let mut found = Vec::new();
        loop {
            let page = account.tables.query(&name, &query).await.unwrap();
            assert!(page.entities.len() <= top.unwrap_or(1000) as usize);
            found.extend(page.entities.into_iter().map(|entity| entity.row_key));
            query.continuation = page.continuation;
            match &query.continuation {
                Some(token) => assert!(token.contains(' '), "two parts: {token}"),
                None => break,
            }
            assert!(found.len() < 20, "the pages do not end");
        }
        assert_eq!(found, expected, "{top:?}");
    }
    for top in [0, 1001] {
        let query = TableQuery { top: Some(top), ..TableQuery::default() };
        refused(account.tables.query(&name, &query).await, ErrorKind::Invalid, 400, "InvalidInput");
    }
}

/// The forms that a hub uses, and their neighbours.
pub async fn filters_choose_rows(account: &StorageAccount, prefix: &str) {
    let name = table(account, prefix).await;
    let at = Timestamp::parse("2026-01-15T09:30:00.1234567Z").unwrap();
    let id = Uuid::from_u128(17);
    for n in 0..4i32 {
        let mut entity = row(&format!("r{n}"))
            .with("N", n)
            .with("RuntimeStatus", if n < 2 { "Running" } else { "Completed" })
            .with("CreatedTime", at + Duration::from_secs(60) * n as u32)
            .with("Even", n % 2 == 0);
        entity.set("Large", Value::Int64(5_000_000_000 + i64::from(n)));
        entity.set("Ratio", Value::Double(f64::from(n) + 0.5));
        if n == 3 {
            entity.set("Id", Value::Guid(id));
            entity.set("Name", "O'Brien");
        }
        insert(account, &name, entity).await;
    }
    insert(account, &name, Entity::new("q", "other").with("N", 9)).await;
    let check = async |filter: &str, expected: &[&str]| {
        assert_eq!(matching(account, &name, filter).await, expected, "{filter}");
    };
    check("PartitionKey eq 'p' and RowKey eq 'r2'", &["r2"]).await;
    check("PartitionKey eq 'p' and RowKey ge 'r2'", &["r2", "r3"]).await;
    check("(PartitionKey ge 'p') and (PartitionKey lt 'q')", &["r0", "r1", "r2", "r3"]).await;
    check("PartitionKey lt 'p' or PartitionKey ge 'q'", &["other"]).await;
    check("PartitionKey eq 'none'", &[]).await;
    check("RowKey gt 'r2'", &["r3"]).await;
    check("N gt 0 and N le 2", &["r1", "r2"]).await;
    check("N eq 1 or N eq 2 and N eq 3", &["r1"]).await;
    check("(N eq 1 or N eq 2) and N eq 2", &["r2"]).await;
    check("not (N lt 3)", &["r3", "other"]).await;
    check("Name eq 'O''Brien'", &["r3"]).await;
    check("RuntimeStatus eq 'Running' or RuntimeStatus eq 'Failed'", &["r0", "r1"]).await;
    check("RuntimeStatus ne 'Running'", &["r2", "r3"]).await; // not `other`, which has none
    check(
        "(CreatedTime ge datetime'2026-01-15T09:31:00.1234567Z') and (CreatedTime lt datetime'2026-01-15T09:33:00.0000000Z')",
        &["r1", "r2"],
    )
    .await;
    check("Large ge 5000000002L", &["r2", "r3"]).await;
    check("Ratio lt 1.6", &["r0", "r1"]).await;
    check("Even eq true and N gt 0", &["r2"]).await;
    check(&format!("Id eq guid'{id}'"), &["r3"]).await;
    check("Missing ne 'x'", &[]).await;
}

/// The answer to a query with this filter is "wrong".
async fn check_wrong(account: &StorageAccount, prefix: &str, filter: &str) {
    let name = table(account, prefix).await;
    let query = TableQuery { filter: Some(filter.to_owned()), ..TableQuery::default() };
    refused(account.tables.query(&name, &query).await, ErrorKind::Invalid, 400, "InvalidInput");
}

/// Filters with mistakes.
pub async fn a_wrong_filter_is_refused(account: &StorageAccount, prefix: &str) {
    check_wrong(account, &format!("{prefix}a"), "Name eq").await;
    check_wrong(account, &format!("{prefix}b"), "(Name eq 'x'").await;
}

/// Not on the emulator, which takes it for a text.
pub async fn an_unclosed_quote_is_refused(account: &StorageAccount, prefix: &str) {
    check_wrong(account, prefix, "Name eq 'x").await;
}

/// Projections.
pub async fn a_selection_returns_only_what_it_names(account: &StorageAccount, prefix: &str) {
    let name = table(account, prefix).await;
    let etag = insert(account, &name, row("r").with("A", 1).with("B", 2)).await;
    let select = ["A", "RowKey", "Missing"].map(str::to_owned).to_vec();
    let query = TableQuery { select, ..TableQuery::default() };
    let page = account.tables.query(&name, &query).await.unwrap();
    let found = &page.entities[0];
    assert_eq!((found.partition_key.as_str(), found.row_key.as_str()), ("", "r"));
    assert_eq!((found.timestamp, found.etag.as_ref()), (None, Some(&etag)));
    assert_eq!(found.columns, Entity::default().with("A", 1).columns);
}
