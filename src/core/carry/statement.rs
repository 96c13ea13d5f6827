//! The store of prepared statements: what is in each of them, and where numbering goes on.

use super::super::prepare::is_statement;
use super::super::Core;
use super::{Kind, Known, Row};
use crate::base::fields::{read, Fields};
use crate::tags;

tags! {
    /// What is told of a statement of the store. One row with the number 0 tells of the whole store.
    STATEMENT_TAGS:
    1 KEY "what is behind the name in a Parse: text, zero, number of declared types, the types",
    2 LAST_NAME "the whole store: the last number that was used in a name",
    3 LAST_UNNAMED "the whole store: the last number of an unnamed statement",
}

impl Core {
    /// The rows of the store's statements.
    pub(super) fn hand_out_statements(&self, rows: &mut Vec<Row>) {
        let mut row = |number, fields: Fields| {
            rows.push(Row { kind: Kind::Statement, number, state: fields.into_bytes() });
        };
        let (name, unnamed) = self.statements.last_numbers();
        let mut fields = Fields::default();
        fields.number(LAST_NAME, name);
        fields.number(LAST_UNNAMED, unnamed);
        row(0, fields);
        for (number, key) in self.statements.hand_out() {
            let mut fields = Fields::default();
            fields.put(KEY, key);
            row(number, fields);
        }
    }

    /// A statement of the store.
    pub(super) fn take_in_statement(&mut self, row: &Row, known: &mut Known) {
        let (mut name, mut unnamed) = (0, 0);
        for field in read(&row.state) {
            match field.tag {
                KEY => {
                    let is_new = row.number != 0 && !known.statements.contains_key(&row.number);
                    if is_new && is_statement(field.value) {
                        let id = self.statements.take_in(row.number, field.value);
                        known.statements.insert(row.number, id);
                    }
                }
                LAST_NAME => name = field.number(),
                LAST_UNNAMED => unnamed = field.number(),
                _ => {}
            }
        }
        self.statements.go_on_from((name, unnamed));
    }
}
