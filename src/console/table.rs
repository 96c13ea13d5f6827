//! Results as tables whose columns are declared once: name, type and value stand in one place, so
//! a RowDescription can't disagree with its rows.

use super::binary;
use crate::base::text::hex;
use crate::wire::write::{self, ColumnType};
use std::borrow::Cow;

/// Type of a column on the wire (admin 0); times are text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text, or NULL.
    Text,
    /// A number of 32 bits with sign.
    Int4,
    /// A number of 64 bits without sign, as `int8`.
    Int8,
    /// A number of 64 bits without sign, as `numeric`.
    Num,
    /// Bytes as `\x` and hex digits, or NULL.
    Bytea,
}

impl Kind {
    fn on_wire(self) -> ColumnType {
        let (oid, size) = match self {
            Kind::Text => (25, -1),
            Kind::Int4 => (23, 4),
            Kind::Int8 => (20, 8),
            Kind::Num => (1700, -1),
            Kind::Bytea => (17, -1),
        };
        ColumnType { oid, size }
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// NULL.
    Null,
    /// A text.
    Text(Vec<u8>),
    /// A number of any type.
    Number(i128),
    /// Bytes, whose text form is hexadecimal.
    Bytes(Vec<u8>),
}

impl Cell {
    /// The text form; `None` is NULL.
    fn text(&self) -> Option<Cow<'_, [u8]>> {
        Some(match self {
            Cell::Null => return None,
            Cell::Text(text) => text.into(),
            Cell::Number(number) => number.to_string().into_bytes().into(),
            Cell::Bytes(bytes) => format!("\\x{}", hex(bytes)).into_bytes().into(),
        })
    }

    /// The binary form in a column of this type; `None` is NULL.
    fn binary(&self, kind: Kind) -> Option<Cow<'_, [u8]>> {
        Some(match (self, kind) {
            (Cell::Null, _) => return None,
            (Cell::Text(bytes) | Cell::Bytes(bytes), _) => bytes.into(),
            (Cell::Number(number), Kind::Int4) => (*number as i32).to_be_bytes().to_vec().into(),
            (Cell::Number(number), Kind::Int8) => (*number as i64).to_be_bytes().to_vec().into(),
            (Cell::Number(number), Kind::Num) => binary::numeric(*number).into(),
            (Cell::Number(_), Kind::Text | Kind::Bytea) => return self.text(),
        })
    }
}

impl From<&[u8]> for Cell {
    fn from(bytes: &[u8]) -> Cell {
        Cell::Text(bytes.to_vec())
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        text.as_bytes().into()
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text.into_bytes())
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Cell {
        Cell::Number(number.into())
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Cell {
        value.map_or(Cell::Null, Into::into)
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
    Int8(fn(&R) -> u64),
    Bytea(fn(&R) -> Option<&[u8]>),
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

/// A column of type int8, without sign.
pub(super) fn long<R>(name: &'static str, value: fn(&R) -> u64) -> Column<R> {
    let value = Getter::Int8(value);
    Column { name, value }
}

/// A column of type bytea.
pub(super) fn bytea<R>(name: &'static str, value: fn(&R) -> Option<&[u8]>) -> Column<R> {
    let value = Getter::Bytea(value);
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
            Getter::Int8(_) => Kind::Int8,
            Getter::Bytea(_) => Kind::Bytea,
        }
    }

    fn cell(&self, row: &R) -> Cell {
        match self.value {
            Getter::Text(value) => value(row),
            Getter::Int4(value) => Cell::Number((value(row) as i32).into()),
            Getter::Int8(value) => value(row).into(),
            Getter::Bytea(value) => {
                value(row).map_or(Cell::Null, |bytes| Cell::Bytes(bytes.to_vec()))
            }
        }
    }
}

/// Is the column of this number binary? Asked for is nothing (no), one answer for all columns, or one
/// for each.
fn is_binary(binary: &[bool], column: usize) -> bool {
    match binary {
        [all] => *all,
        each => each.get(column).copied().unwrap_or(false),
    }
}

/// The result of a SHOW.
pub(super) struct Table {
    heads: Vec<(Cow<'static, str>, Kind)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A result from its columns and what its rows are made of.
    pub(super) fn new<R>(columns: &[Column<R>], rows: impl IntoIterator<Item = R>) -> Table {
        let cells = |row: R| columns.iter().map(|column| column.cell(&row)).collect();
        Table {
            heads: columns.iter().map(|c| (c.name.into(), c.kind())).collect(),
            rows: rows.into_iter().map(cells).collect(),
        }
    }

    /// A result whose columns are known at run time only.
    pub(super) fn from_cells(
        heads: Vec<(Cow<'static, str>, Kind)>,
        rows: impl Iterator<Item = Vec<Cell>>,
    ) -> Table {
        Table { heads, rows: rows.collect() }
    }

    /// How many columns it has.
    pub(super) fn width(&self) -> usize {
        self.heads.len()
    }

    /// How many rows it has.
    pub(super) fn height(&self) -> usize {
        self.rows.len()
    }

    /// RowDescription; `binary` as in [`is_binary`].
    pub(super) fn describe(&self, out: &mut Vec<u8>, binary: &[bool]) {
        let columns = self.heads.iter().enumerate();
        let columns =
            columns.map(|(at, (name, kind))| (&**name, kind.on_wire(), is_binary(binary, at)));
        write::row_description(out, columns);
    }

    /// The rows as DataRow packets.
    pub(super) fn rows<'a>(&'a self, binary: &'a [bool]) -> impl Iterator<Item = Vec<u8>> + 'a {
        self.rows.iter().map(move |row| {
            let mut out = Vec::new();
            self.write_row(&mut out, row, binary);
            out
        })
    }

    /// All rows.
    pub(super) fn write_rows(&self, out: &mut Vec<u8>, binary: &[bool]) {
        for row in &self.rows {
            self.write_row(out, row, binary);
        }
    }

    fn write_row(&self, out: &mut Vec<u8>, row: &[Cell], binary: &[bool]) {
        let cells = row.iter().zip(&self.heads).enumerate();
        let values = cells.map(|(at, (cell, (_, kind)))| match is_binary(binary, at) {
            true => cell.binary(*kind),
            false => cell.text(),
        });
        let values: Vec<_> = values.collect();
        write::data_row(out, values.iter().map(Option::as_deref));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_values_come_from_one_declaration() {
        let columns =
            [text("t", |row: &i64| (*row > 0).then_some("x").into()), int("i", |row| *row)];
        let table = Table::new(&columns, [1, -1, (1 << 32) + 5]);
        let mut reply = Vec::new();
        table.describe(&mut reply, &[]);
        table.write_rows(&mut reply, &[]);
        let mut want = b"T\0\0\0\x2e\0\x02".to_vec();
        want.extend(b"t\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
        want.extend(b"i\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
        want.extend(b"D\0\0\0\x10\0\x02\0\0\0\x01x\0\0\0\x011");
        want.extend(b"D\0\0\0\x10\0\x02\xff\xff\xff\xff\0\0\0\x02-1");
        want.extend(b"D\0\0\0\x10\0\x02\0\0\0\x01x\0\0\0\x015");
        assert_eq!(reply, want);
    }

    #[test]
    fn long_numbers_have_no_sign_and_bytes_are_hex() {
        let columns = [
            long("l", |row: &Option<[u8; 2]>| if row.is_some() { u64::MAX } else { 0 }),
            bytea("b", |row| row.as_ref().map(|bytes| &bytes[..])),
        ];
        let table = Table::new(&columns, [Some([0x0f, 0xa0]), None]);
        let mut reply = Vec::new();
        table.describe(&mut reply, &[]);
        let mut want = b"T\0\0\0\x2e\0\x02".to_vec();
        want.extend(b"l\0\0\0\0\0\0\0\0\0\0\x14\0\x08\xff\xff\xff\xff\0\0");
        want.extend(b"b\0\0\0\0\0\0\0\0\0\0\x11\xff\xff\xff\xff\xff\xff\0\0");
        assert_eq!(reply, want);
        let rows: Vec<Vec<u8>> = table.rows(&[]).collect();
        let first = b"D\0\0\0\x28\0\x02\0\0\0\x1418446744073709551615\0\0\0\x06\\x0fa0";
        assert_eq!(rows, [&first[..], b"D\0\0\0\x0f\0\x02\0\0\0\x010\xff\xff\xff\xff"]);
    }

    #[test]
    fn each_column_has_the_form_that_was_asked_for() {
        let heads = || vec![("t".into(), Kind::Text), ("n".into(), Kind::Num)];
        let row = || std::iter::once(vec![Cell::from("x"), Cell::Number(5)]);
        let table = Table::from_cells(heads(), row());
        let text_form = (b"\0\0\0\x01x", b"\0\0\0\x015");
        let number = b"\0\0\0\x0a\0\x01\0\0\0\0\0\0\0\x05";
        for (binary, formats, cells) in [
            (&[][..], [0, 0], [&text_form.0[..], &text_form.1[..]]),
            (&[false], [0, 0], [text_form.0, text_form.1]),
            (&[true], [1, 1], [text_form.0, number]),
            (&[true, false], [1, 0], [text_form.0, text_form.1]),
            (&[false, true], [0, 1], [text_form.0, number]),
        ] {
            let mut reply = Vec::new();
            table.describe(&mut reply, binary);
            assert_eq!(reply.len(), 7 + 2 * 20);
            assert_eq!((reply[26], reply[46]), (formats[0], formats[1]), "{binary:?}");
            let rows: Vec<_> = table.rows(binary).collect();
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0][7..], cells.concat(), "{binary:?}");
            reply.clear();
            table.write_rows(&mut reply, binary);
            assert_eq!(rows[0], reply);
        }
        assert_eq!(Cell::Null.binary(Kind::Int4), None);
        assert_eq!(Cell::Bytes(vec![0, 92]).binary(Kind::Bytea).as_deref(), Some(&[0, 92][..]));
        let largest = Cell::Number(u64::MAX.into());
        assert_eq!(largest.binary(Kind::Int8).as_deref(), Some(&[0xff; 8][..]));
        assert_eq!(Cell::Number(-2).binary(Kind::Int4).as_deref(), Some(&b"\xff\xff\xff\xfe"[..]));
    }
}
