import Dialing
import SystemCalls

/// All connections of a device. Each is one of its queues.
struct ConnectionSet: ~Copyable {
    let facts: ExportFacts
    private(set) var notices: [DialNotice] = []
    private var files: [Int32] = []

    deinit {
        for file in files { _ = FileDescriptor(owning: file) }
    }

    /// In the order of the queues. They stay the set's.
    var numbers: [Int32] { files }

    /// What is told of them.
    func export(_ address: NBDAddress) -> DialedExport {
        DialedExport(
            label: address.label, connections: files.count, size: facts.size, flags: facts.flags,
            minimumBlock: facts.minimumBlock, preferredBlock: facts.preferredBlock, maximumBlock: facts.maximumBlock,
            cipher: facts.cipher, notices: notices)
    }

    private init(_ first: consuming DialedConnection) {
        facts = first.facts
        files = [first.takeFile()]
    }

    /// - Parameters:
    ///   - count: how many are wanted.
    ///   - before: what was agreed earlier, at another connection of the same device.
    static func dial(
        _ dialer: Dialer, count: Int, before: ExportFacts? = nil
    ) throws(DialFailure) -> ConnectionSet {
        var set = ConnectionSet(try dialer.dial())
        if let before, let what = set.facts.difference(from: before) {
            throw DialFailure(
                .unsuitable, "the server at \(dialer.address.placeText) has another export than before: \(what)",
                remedy: "let it serve the same one")
        }
        try set.fill(dialer, count)
        return set
    }

    private mutating func fill(_ dialer: Dialer, _ count: Int) throws(DialFailure) {
        let place = dialer.address.placeText
        if count > 1, !facts.takesMultipleConnections {
            notices.append(
                DialNotice(
                    "connections",
                    "the server at \(place) does not say that several connections see each other's writes "
                        + "(NBD_FLAG_CAN_MULTI_CONN), so the device has one connection and one queue"))
            return
        }
        while files.count < count {
            let next = try dialer.dial()
            if let what = next.facts.difference(from: facts) {
                throw DialFailure(
                    .unsuitable, "the server at \(place) tells each connection something else: \(what)",
                    remedy: "report it to those who made it, or use --connections 1")
            }
            files.append(next.takeFile())
        }
    }
}
