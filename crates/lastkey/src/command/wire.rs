//! From the Alibaba wire's spelling to ours: `KeyId` becomes `key_id`, an alias the key's id.

use lastkey_client::Client;
use lastkey_crypto::KeyId;
use serde_json::{Map, Value};

use crate::output::Failure;

/// The id behind an id, an alias or an ARN. An id needs no question: the key may be gone, or
/// nobody's business.
///
/// # Errors
///
/// There is no such key, or the server cannot be asked.
pub(super) async fn key_id(client: &Client, key: &str) -> Result<KeyId, Failure> {
    if let Ok(id) = key.parse() {
        return Ok(id);
    }
    let answer = client.alibaba("DescribeKey", &[("KeyId", key)]).await?;
    let id = answer["KeyMetadata"]["KeyId"].as_str().unwrap_or_default();
    id.parse().map_err(Failure::failed)
}

/// The value with all field names in snake case.
pub(super) fn snake(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields.into_iter().map(|(name, value)| (snake_name(&name), snake(value))).collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(snake).collect()),
        other => other,
    }
}

pub(super) fn snake_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for (index, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && index > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// The object without fields that say nothing.
pub(super) fn without_empty(value: Value) -> Value {
    let Value::Object(fields) = value else { return value };
    let said = |value: &Value| !value.is_null() && value.as_str() != Some("");
    Value::Object(fields.into_iter().filter(|(_, value)| said(value)).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_change_and_values_do_not() {
        let wire = json!({"KeyMetadata": {"KeyId": "AbC", "DeleteDate": ""}, "Page": [1]});
        let ours = json!({"key_metadata": {"key_id": "AbC", "delete_date": ""}, "page": [1]});
        assert_eq!(snake(wire), ours);
        assert_eq!(without_empty(json!({"a": "", "b": 1})), json!({"b": 1}));
    }
}
