//! Results as tables whose columns are declared once: name, type and value stand in one place, so
//! a RowDescription can't disagree with its rows.

use crate::wire::write::{self, ColumnType};

/// Type of a column on the wire (admin 0); times are text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text, or NULL.
    Text,
    /// A number of 32 bits with sign.
    Int4,
    /// A number of 64 bits without sign, as `numeric`.
    Num,
}

impl Kind {
    fn on_wire(self) -> ColumnType {
        let (oid, size) = match self {
            Kind::Text => (25, -1),
            Kind::Int4 => (23, 4),
            Kind::Num => (1700, -1),
        };
        ColumnType { oid, size }
    }
}

/// A value in its text form; `None` is NULL.
pub(super) struct Cell(Option<Vec<u8>>);

impl From<&[u8]> for Cell {
    fn from(bytes: &[u8]) -> Cell {
        Cell(Some(bytes.to_vec()))
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        text.as_bytes().into()
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell(Some(text.into_bytes()))
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Cell {
        number.to_string().into()
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Cell {
        value.map_or(Cell(None), Into::into)
    }
}

/// One column of rows `R`: its name and how its value is found, which says its type too.
pub(super) struct Column<R> {
    name: &'static str,
    value: Getter<R>,
}

enum Getter<R> {
    Text(fn(&R) -> Cell),
    Int4(fn(&R) -> i64),
}

/// A column of type text.
pub(super) fn text<R>(name: &'static str, value: fn(&R) -> Cell) -> Column<R> {
    let value = Getter::Text(value);
    Column { name, value }
}

/// A column of type int4; larger numbers lose their upper bits.
pub(super) fn int<R>(name: &'static str, value: fn(&R) -> i64) -> Column<R> {
    let value = Getter::Int4(value);
    Column { name, value }
}

/// A count as the value of an int4 column.
pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl<R> Column<R> {
    fn kind(&self) -> Kind {
        match self.value {
            Getter::Text(_) => Kind::Text,
            Getter::Int4(_) => Kind::Int4,
        }
    }

    fn cell(&self, row: &R) -> Cell {
        match self.value {
            Getter::Text(value) => value(row),
            Getter::Int4(value) => (value(row) as i32).to_string().into(),
        }
    }
}

/// A whole reply to SHOW.
pub(super) fn table<R>(columns: &[Column<R>], rows: impl IntoIterator<Item = R>) -> Vec<u8> {
    let heads: Vec<_> = columns.iter().map(|c| (c.name, c.kind())).collect();
    let cells = rows.into_iter().map(|row| {
        let cells = columns.iter().map(|column| column.cell(&row));
        cells.collect()
    });
    result(&heads, cells)
}

/// A whole reply to SHOW whose columns are known at run time only.
pub(super) fn result(heads: &[(&str, Kind)], rows: impl Iterator<Item = Vec<Cell>>) -> Vec<u8> {
    let mut out = Vec::new();
    let columns = heads.iter().map(|(name, kind)| (*name, kind.on_wire()));
    write::row_description(&mut out, columns);
    for row in rows {
        write::data_row(&mut out, row.iter().map(|cell| cell.0.as_deref()));
    }
    done(&mut out, "SHOW");
    out
}

/// Ends a reply: CommandComplete and ReadyForQuery.
pub(super) fn done(out: &mut Vec<u8>, tag: &str) {
    write::command_complete(out, tag);
    write::ready(out, b'I');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_values_come_from_one_declaration() {
        let columns =
            [text("t", |row: &i64| (*row > 0).then_some("x").into()), int("i", |row| *row)];
        let reply = table(&columns, [1, -1, (1 << 32) + 5]);
        let mut want = b"T\0\0\0\x2e\0\x02".to_vec();
        want.extend(b"t\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
        want.extend(b"i\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
        want.extend(b"D\0\0\0\x10\0\x02\0\0\0\x01x\0\0\0\x011");
        want.extend(b"D\0\0\0\x10\0\x02\xff\xff\xff\xff\0\0\0\x02-1");
        want.extend(b"D\0\0\0\x10\0\x02\0\0\0\x01x\0\0\0\x015");
        want.extend(b"C\0\0\0\x09SHOW\0Z\0\0\0\x05I");
        assert_eq!(reply, want);
    }
}
