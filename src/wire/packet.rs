//! Kinds of packets, one table for each direction: the same byte means different things in the two.

/// Declares a kind of packets: one row per type byte.
macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($byte:literal $variant:ident)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the variants carry the protocol chapter's names")]
        pub enum $name { $($variant,)* Unknown }
        impl $name {
            /// The kind that a type byte stands for.
            #[inline]
            pub fn of(tag: u8) -> $name {
                const KINDS: [$name; 256] = {
                    let mut kinds = [$name::Unknown; 256];
                    $(kinds[$byte as usize] = $name::$variant;)*
                    kinds
                };
                KINDS[usize::from(tag)]
            }
        }
    };
}

kinds! {
    /// What a client sends after its start-up packet.
    FromClient {
        b'Q' Query
        b'F' FunctionCall
        b'P' Parse
        b'B' Bind
        b'D' Describe
        b'C' Close
        b'E' Execute
        b'S' Sync
        b'H' Flush
        b'd' CopyData
        b'c' CopyDone
        b'f' CopyFail
        b'X' Terminate
        b'p' Password
    }
}

kinds! {
    /// What a server sends.
    FromServer {
        b'R' Authentication
        b'K' BackendKeyData
        b'S' ParameterStatus
        b'Z' ReadyForQuery
        b'E' ErrorResponse
        b'N' NoticeResponse
        b'A' NotificationResponse
        b'1' ParseComplete
        b'2' BindComplete
        b'3' CloseComplete
        b'C' CommandComplete
        b'D' DataRow
        b'I' EmptyQueryResponse
        b'G' CopyInResponse
        b'H' CopyOutResponse
        b'W' CopyBothResponse
        b'd' CopyData
        b'c' CopyDone
        b'n' NoData
        b's' PortalSuspended
        b't' ParameterDescription
        b'T' RowDescription
        b'V' FunctionCallResponse
        b'v' NegotiateProtocolVersion
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_byte_differs_by_direction() {
        for (byte, client, server) in [
            (b'S', FromClient::Sync, FromServer::ParameterStatus),
            (b'E', FromClient::Execute, FromServer::ErrorResponse),
            (b'D', FromClient::Describe, FromServer::DataRow),
            (b'C', FromClient::Close, FromServer::CommandComplete),
            (b'H', FromClient::Flush, FromServer::CopyOutResponse),
            (b'y', FromClient::Unknown, FromServer::Unknown),
        ] {
            assert_eq!((FromClient::of(byte), FromServer::of(byte)), (client, server));
        }
    }
}
