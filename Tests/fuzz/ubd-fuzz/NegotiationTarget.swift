import NBDClient
import NBDProtocol
import Targets

/// How a negotiation ended, and all that was sent.
private struct Course: Equatable {
    var facts: ExportFacts?
    var error: NegotiationError?
    var sent: [UInt8] = []
    var taken = 0
}

/// The first byte chooses whether TLS is wanted and how the rest, a server's bytes, is cut: the end must not depend on the cut.
func testNegotiation(_ input: [UInt8]) {
    guard let first = input.first else { return }
    let stream = input[1...]
    let whole = negotiate(stream, wantsTLS: first & 1 != 0, piece: .max)
    let pieces = negotiate(stream, wantsTLS: first & 1 != 0, piece: 1 + Int(first >> 1 & 15))
    require(whole == pieces, "cut into pieces: \(pieces), whole: \(whole)")
    // An answer to each option, and a farewell.
    require(whole.sent.count <= 256, "\(whole.sent.count) bytes sent for \(input.count)")
    if let facts = whole.facts {
        require(facts.size <= UInt64(Int64.max) && facts.flags & 1 == 1, "\(facts)")
        require(facts.minimumBlock.nonzeroBitCount == 1 && facts.minimumBlock <= facts.maximumBlock, "\(facts)")
        require(facts.difference(from: facts) == nil, "\(facts)")
    }
    if let error = whole.error {
        require(!error.message.isEmpty && error.message.utf8.count < 4096, "\(error)")
        require(!(error.message + error.remedy).unicodeScalars.contains { $0.isControl }, "\(error)")
    }
}

private func negotiate(_ stream: ArraySlice<UInt8>, wantsTLS: Bool, piece: Int) -> Course {
    var negotiation = Negotiation(export: Array("disk".utf8), wantsTLS: wantsTLS)
    var course = Course()
    var left = stream
    while true {
        switch negotiation.step {
        case .finished(let facts):
            course.facts = facts
            return course
        case .startTLS:
            course.sent += [0xFF]
            negotiation.secured()
        case .receive(let wanted):
            require((1...8200).contains(wanted), "\(wanted) bytes are wanted")
            guard !left.isEmpty else { return course }
            let part = left.prefix(min(wanted, piece))
            left = left.dropFirst(part.count)
            course.taken += part.count
            do { try negotiation.receive(part) } catch {
                course.error = error
                course.sent += negotiation.takeOutput()
                return course
            }
        }
        course.sent += negotiation.takeOutput()
    }
}

/// A URI that is accepted leads to the same place by its label, which tells no name of a file with keys.
func testAddress(_ input: [UInt8]) {
    guard let text = String(validating: input, as: UTF8.self) else { return }
    let address: NBDAddress
    do { address = try NBDAddress(text) } catch {
        require(!(error.message + error.remedy).unicodeScalars.contains { $0.isControl }, "\(error)")
        return
    }
    let label = address.label
    var again = address
    if let tls = address.tls {
        again.tls = NBDAddress.TLSWish()
        again.tls?.username = tls.username
    }
    do { require(try NBDAddress(label) == again, "\(text) has the label \(label)") } catch {
        require(false, "\(text) has the label \(label), which is none: \(error)")
    }
}
