import NBDProtocol
import Testing

@testable import NBDClient

/// What a server sends, piece by piece.
struct Wire {
    var bytes: [UInt8] = []

    static func number<Number: FixedWidthInteger>(_ number: Number) -> [UInt8] {
        withUnsafeBytes(of: number.bigEndian) { Array($0) }
    }

    static func greeting(_ flags: UInt16 = 3) -> [UInt8] {
        number(NBDOption.greeting) + number(NBDOption.magic) + number(flags)
    }

    static func reply(_ option: NBDOption.Kind, _ type: UInt32, _ body: [UInt8] = []) -> [UInt8] {
        number(NBDOption.replyMagic) + number(option.rawValue) + number(type) + number(UInt32(body.count)) + body
    }

    static func export(_ size: UInt64, _ flags: UInt16) -> [UInt8] {
        reply(.go, NBDOption.Reply.info, number(UInt16(0)) + number(size) + number(flags))
    }

    static func blocks(_ minimum: UInt32, _ preferred: UInt32, _ maximum: UInt32) -> [UInt8] {
        reply(.go, NBDOption.Reply.info, number(UInt16(3)) + number(minimum) + number(preferred) + number(maximum))
    }

    static func refusal(_ option: NBDOption.Kind, _ code: NBDOption.Failure, _ text: String = "") -> [UInt8] {
        reply(option, NBDOption.Reply.error | code.rawValue, Array(text.utf8))
    }

    static func name(_ name: String) -> [UInt8] {
        reply(.list, NBDOption.Reply.server, number(UInt32(name.utf8.count)) + Array(name.utf8))
    }

    static let ack = reply(.go, NBDOption.Reply.ack)
}

@Suite("The negotiation")
struct NegotiationTests {
    /// Feeds it all in pieces of that size, and returns what it sent.
    private func run(
        _ negotiation: inout Negotiation, _ bytes: [UInt8], piece: Int = .max
    ) throws(NegotiationError) -> (sent: [UInt8], left: Int) {
        var sent: [UInt8] = []
        var rest = bytes[...]
        while true {
            switch negotiation.step {
            case .receive(let count):
                guard !rest.isEmpty else { return (sent, 0) }
                let part = rest.prefix(min(count, piece))
                rest = rest.dropFirst(part.count)
                try negotiation.receive(part)
            case .startTLS:
                sent += [0xFF]
                negotiation.secured()
            case .finished: return (sent + negotiation.takeOutput(), rest.count)
            }
            sent += negotiation.takeOutput()
        }
    }

    private static let go =
        Wire.number(NBDOption.magic) + Wire.number(UInt32(7)) + Wire.number(UInt32(9)) + Wire.number(UInt32(1))
        + Array("x".utf8) + Wire.number(UInt16(1)) + Wire.number(UInt16(3))
    private static let abort = Wire.number(NBDOption.magic) + Wire.number(UInt32(2)) + Wire.number(UInt32(0))

    @Test(
        "agrees on size, flags and blocks, however the bytes arrive, and takes none too many",
        arguments: [1, 3, 7, 1000])
    func agrees(piece: Int) throws {
        var negotiation = Negotiation(export: Array("x".utf8), wantsTLS: false)
        let stream = Wire.greeting() + Wire.export(1 << 30, 0x16D) + Wire.blocks(1, 4096, 32 << 20) + Wire.ack
        let (sent, left) = try run(&negotiation, stream + [1, 2, 3], piece: piece)
        #expect(left == 3)
        #expect(sent == Wire.number(UInt32(3)) + Self.go)
        var facts = ExportFacts(size: 1 << 30, flags: 0x16D)
        facts.hasBlocks = true
        #expect(negotiation.step == .finished(facts))
        #expect(facts.takesMultipleConnections && !facts.isReadOnly)
    }

    @Test("answers with the flags that the server has, and takes what the protocol says where it tells no blocks")
    func withoutBlocks() throws {
        var negotiation = Negotiation(export: Array("x".utf8), wantsTLS: false)
        let (sent, _) = try run(&negotiation, Wire.greeting(1) + Wire.export(512, 1) + Wire.ack)
        #expect(sent == Wire.number(UInt32(1)) + Self.go)
        guard case .finished(let facts) = negotiation.step else {
            Issue.record("\(negotiation.step)")
            return
        }
        #expect(facts.minimumBlock == 1 && facts.preferredBlock == 4096 && facts.maximumBlock == 32 << 20)
    }

    @Test("asks for TLS before it names the export")
    func startsTLS() throws {
        var negotiation = Negotiation(export: Array("x".utf8), wantsTLS: true)
        let stream =
            Wire.greeting() + Wire.reply(.startTLS, NBDOption.Reply.ack) + Wire.export(512, 1) + Wire.ack
        let (sent, _) = try run(&negotiation, stream)
        let start = Wire.number(NBDOption.magic) + Wire.number(UInt32(5)) + Wire.number(UInt32(0))
        #expect(sent == Wire.number(UInt32(3)) + start + [0xFF] + Self.go)
    }

    @Test("tells which exports there are when the one that is wanted is not among them")
    func lists() throws {
        var negotiation = Negotiation(export: Array("x".utf8), wantsTLS: false)
        let stream =
            Wire.greeting() + Wire.refusal(.go, .unknown, "no such\u{1B}[2J thing") + Wire.name("a") + Wire.name("")
            + Wire.reply(.list, NBDOption.Reply.ack)
        let error = #expect(throws: NegotiationError.self) { try run(&negotiation, stream) }
        #expect(
            error?.message == "does not have export 'x': 'no such?[2J thing'; it has 'a', '' (its default)",
            "\(error!.message)")
        #expect(negotiation.takeOutput() == Self.abort)
    }

    @Test("reads no endless list of exports")
    func endlessList() throws {
        var negotiation = Negotiation(export: Array("x".utf8), wantsTLS: false)
        var stream = Wire.greeting() + Wire.refusal(.go, .unknown)
        for number in 0..<10_000 { stream += Wire.name("export\(number)") }
        let error = #expect(throws: NegotiationError.self) { try run(&negotiation, stream) }
        #expect(error?.message.hasSuffix("'export15', …") == true, "\(error!.message)")
    }

    @Test(
        "tells every refusal in words",
        arguments: [
            (NBDOption.Failure.unsupported, "NBD_OPT_GO"), (.policy, "does not give export 'x'"),
            (.invalid, "malformed"),
            (.platform, "platform"), (.tlsRequired, "wants TLS"), (.unknown, "does not have export 'x'"),
            (.shutdown, "shutting down"), (.blockSizeRequired, "block sizes"), (.tooBig, "too large"),
            (.extendedHeadersRequired, "extended headers"),
        ])
    func refusals(code: NBDOption.Failure, words: String) throws {
        var negotiation = Negotiation(export: Array("x".utf8), wantsTLS: false)
        // A server that lists nothing either.
        let stream = Wire.greeting() + Wire.refusal(.go, code, "because") + Wire.refusal(.list, .policy)
        let error = #expect(throws: NegotiationError.self) { try run(&negotiation, stream) }
        #expect(error?.message.contains(words) == true, "\(error!.message)")
        #expect(error?.message.contains("'because'") == true)
        #expect(negotiation.takeOutput() == Self.abort)
    }

    @Test("of a server without TLS goes no step further")
    func noTLS() throws {
        for (code, words) in [
            (NBDOption.Failure.unsupported, "has no TLS"), (.policy, "does not let this client use TLS"),
            // No question for its exports follows: that would go in plain text.
            (.unknown, "refused TLS with error 6"), (.invalid, "refused TLS with error 3"),
        ] {
            var negotiation = Negotiation(export: Array("x".utf8), wantsTLS: true)
            let error = #expect(throws: NegotiationError.self) {
                try run(&negotiation, Wire.greeting() + Wire.refusal(.startTLS, code))
            }
            #expect(error?.kind == .refused && error?.message.hasPrefix(words) == true, "\(error?.message ?? "")")
            #expect(negotiation.takeOutput() == Self.abort)
        }
    }

    /// What a server sends in place of what it should, and a part of what is told of it.
    private static let violations: [(stream: [UInt8], words: String)] = {
        var all: [(stream: [UInt8], words: String)] = []
        func add(_ words: String, _ pieces: [UInt8]...) { all.append((Array(pieces.joined()), words)) }
        add("first bytes", Array("HTTP/1.1 400 Bad R".utf8))
        add("old style", Wire.number(NBDOption.greeting), Wire.number(NBDOption.oldstyleMagic), [0, 0])
        add("second word", Wire.number(NBDOption.greeting), Wire.number(UInt64(7)), [0, 0])
        add("before 2013", Wire.greeting(0))
        add("before 2013", Wire.greeting(2))
        add("a reply begins with", Wire.greeting(), Wire.number(UInt64(1)), [UInt8](repeating: 0, count: 12))
        add("answers option 3", Wire.greeting(), Wire.reply(.list, 1))
        add("a reply of type 2", Wire.greeting(), Wire.reply(.go, 2))
        add("an acknowledgement with 1 bytes", Wire.greeting(), Wire.reply(.go, 1, [0]))
        add("without telling size", Wire.greeting(), Wire.ack)
        add("without telling size", Wire.greeting(), Wire.blocks(1, 512, 512), Wire.ack)
        add("without its kind", Wire.greeting(), Wire.reply(.go, 3))
        add("without its kind", Wire.greeting(), Wire.reply(.go, 3, [0]))
        add("in 3 bytes instead of 12", Wire.greeting(), Wire.reply(.go, 3, [0, 0, 0]))
        add("in 3 bytes instead of 14", Wire.greeting(), Wire.reply(.go, 3, [0, 3, 0]))
        add("two sizes", Wire.greeting(), Wire.export(1, 1), Wire.export(2, 1))
        add("twice", Wire.greeting(), Wire.blocks(1, 512, 512), Wire.blocks(1, 512, 512))
        add("no flags", Wire.greeting(), Wire.export(512, 0), Wire.ack)
        add("9223372036854775808 bytes", Wire.greeting(), Wire.export(1 << 63, 1), Wire.ack)
        add("which can not be", Wire.greeting(), Wire.export(512, 1), Wire.blocks(3, 512, 512), Wire.ack)
        add("which can not be", Wire.greeting(), Wire.export(512, 1), Wire.blocks(0, 512, 512), Wire.ack)
        add("which can not be", Wire.greeting(), Wire.export(512, 1), Wire.blocks(1 << 17, 1 << 17, 1 << 20), Wire.ack)
        add("which can not be", Wire.greeting(), Wire.export(512, 1), Wire.blocks(1024, 512, 4096), Wire.ack)
        add("which can not be", Wire.greeting(), Wire.export(512, 1), Wire.blocks(512, 4096, 512), Wire.ack)
        add("which can not be", Wire.greeting(), Wire.export(512, 1), Wire.blocks(512, 4096, 5000), Wire.ack)
        return all
    }()

    @Test("calls everything else a violation, or an old server by its name")
    func namesViolations() throws {
        for (stream, words) in Self.violations {
            var negotiation = Negotiation(export: Array("x".utf8), wantsTLS: false)
            let error = #expect(throws: NegotiationError.self, "\(words)") { try run(&negotiation, stream) }
            #expect(error?.message.contains(words) == true, "\(error?.message ?? "") instead of \(words)")
        }
    }

    @Test("takes no long replies, and not endlessly many")
    func bounds() throws {
        let header = Wire.number(NBDOption.replyMagic) + Wire.number(UInt32(7)) + Wire.number(UInt32(3))
        var negotiation = Negotiation(export: Array("x".utf8), wantsTLS: false)
        let long = #expect(throws: NegotiationError.self) {
            try run(&negotiation, Wire.greeting() + header + Wire.number(UInt32(Negotiation.longestReply + 1)))
        }
        #expect(long?.message.contains("a reply of 8197 bytes") == true)
        negotiation = Negotiation(export: Array("x".utf8), wantsTLS: false)
        let one = Wire.reply(.go, 3, [0, 9])
        let many = #expect(throws: NegotiationError.self) {
            try run(&negotiation, Wire.greeting() + Array(repeatElement(one, count: 1000).joined()))
        }
        #expect(many?.message.contains("more than 256 replies") == true)
    }

    @Test("is the same export only with the same size, flags, blocks and cipher")
    func differences() {
        let before = ExportFacts(size: 1024, flags: 1)
        #expect(before.difference(from: before) == nil)
        for (change, words) in [
            (\ExportFacts.minimumBlock, "smallest block"), (\.preferredBlock, "best block"),
            (\.maximumBlock, "largest request"),
        ] as [(WritableKeyPath<ExportFacts, UInt32>, String)] {
            var now = before
            now[keyPath: change] *= 2
            #expect(now.difference(from: before)?.contains(words) == true)
        }
        #expect(ExportFacts(size: 512, flags: 1).difference(from: before) == "its size was 1024 bytes and is 512")
        #expect(ExportFacts(size: 1024, flags: 3).difference(from: before) == "its flags were 0x1 and are 0x3")
        var (now, then) = (before, before)
        (now.cipher, then.cipher) = ("TLS1.3 AES-128-GCM", "TLS1.3 CHACHA20-POLY1305")
        #expect(
            now.difference(from: then) == "its cipher was 'TLS1.3 CHACHA20-POLY1305' and is 'TLS1.3 AES-128-GCM'")
        #expect(before.difference(from: then) == "its cipher was 'TLS1.3 CHACHA20-POLY1305' and is ''")
    }

    @Test("is not the same with another user's server on this host, or with one that can't be told")
    func otherUser() {
        var before = ExportFacts(size: 1024, flags: 1)
        var now = before
        now.serverUser = 1001
        #expect(now.difference(from: before) == nil, "a server on another host is known by nothing of this")
        before.serverUser = 1000
        #expect(now.difference(from: before) == "a process of uid 1001 serves it, and one of uid 1000 did")
        now.serverUser = nil
        #expect(now.difference(from: before) == "no process of this host serves it, and one of uid 1000 did")
        now.serverUser = 1000
        #expect(now.difference(from: before) == nil)
    }

    @Test("by a name on record, is taken from its user's own servers, from root's and from other hosts'")
    func recorded() {
        var facts = ExportFacts(size: 1024, flags: 1)
        for (user, isTaken) in [(nil, true), (1000, true), (0, true), (1001, false)] as [(UInt32?, Bool)] {
            facts.serverUser = user
            let failure = ServerUser.distrust(facts, at: "/tmp/s", of: 1000)
            #expect((failure == nil) == isTaken)
            #expect(isTaken || failure?.message.contains("/tmp/s is a process of uid 1001") == true)
        }
    }
}
