import BrokerInterface
import Dialing
import Glibc
import SystemCalls
import Targets

/// From what a server agreed to, what the broker is told, and what the user is.
struct DialedDevice {
    let export: DialedExport
    private(set) var notices: [Notice] = []
    /// What was agreed, under the names of the target's options.
    let options: [OptionValue]
    /// Bytes of one request that the server takes.
    let maxIOBytes: Int64

    /// - Parameter maxIOBytes: what was asked for.
    init(_ export: DialedExport, maxIOBytes asked: Int64) throws(CommandFailure) {
        self.export = export
        let block = export.blockSize
        guard block <= 4096 else {
            throw CommandFailure(
                .failed, "ServerUnsuitable",
                "the server takes no blocks of less than \(export.minimumBlock) bytes, and a device's have at most 4096",
                remedy: "let it take smaller ones; nbdkit does with --filter=blocksize")
        }
        let size = export.deviceSize
        guard size > 0 else {
            throw CommandFailure(
                .failed, "ServerUnsuitable", "the export has \(export.size) bytes, less than a block of \(block)",
                remedy: "name another export, or let the server serve more")
        }
        let largest = Int64(export.maximumBlock) / 4096 * 4096
        guard largest > 0 else {
            throw CommandFailure(
                .failed, "ServerUnsuitable",
                "the server takes no more than \(export.maximumBlock) bytes at once, and a device needs 4096",
                remedy: "let it take larger requests; nbdkit does with --filter=blocksize")
        }
        maxIOBytes = min(asked, largest)
        options = export.options.map { OptionValue($0.name, $0.value) }
        notices = export.notices.map { Notice(code: $0.code, message: $0.message) }
        if size < export.size {
            notices.append(
                Notice(
                    code: "size",
                    message: "the export has \(export.size) bytes, no multiple of \(block), so the device has \(size)"))
        }
        if maxIOBytes < asked {
            notices.append(
                Notice(
                    code: "max-io-size",
                    message: "the server takes at most \(export.maximumBlock) bytes at once, so a request has at most "
                        + "\(maxIOBytes)"))
        }
    }

    /// The server does not let it be written (NBD_FLAG_READ_ONLY).
    var isReadOnly: Bool { export.flags & 1 << 1 != 0 }
    /// It can make what it was told stay (NBD_FLAG_SEND_FLUSH).
    private var canFlush: Bool { export.flags & 1 << 2 != 0 }

    /// What the user is told of a device that can be written.
    mutating func noteWrites(readOnly: Bool) {
        if isReadOnly, !readOnly {
            notices.append(
                Notice(code: "read-only", message: "the server's export is read-only, so the device is, too"))
        } else if !isReadOnly, !readOnly, !canFlush {
            notices.append(
                Notice(
                    code: "no-flush",
                    message: "the server has no flush, so nobody can know when what was written is on its disk"))
        }
    }
}
