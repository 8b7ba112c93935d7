import BrokerInterface
import Testing
import Varlink

@Suite("Every structure of the interface")
struct StructureTests {
    @Test("has each of its stored properties as a member, in their order")
    func allProperties() {
        let structures: [any Structure] = [
            Sample.device, Sample.groupLimits, Sample.limits, Sample.info, Sample.add, Sample.notice, Sample.counts,
            Sample.counts.read, Sample.stats, StatsReply(latencyBounds: [], devices: []),
            StatsRequest(id: 3, queues: true), ListRequest(id: 3), ListReply(devices: []),
            DeleteRequest(id: 3, generation: 17, force: true), UpgradeRequest(id: 3, generation: 17),
            ResizeRequest(id: 3, generation: 17, sizeBytes: 512, shrink: true),
            ResizeReply(previousBytes: 512, device: Sample.device),
            MonitorRequest(ids: [3], keep: true), Sample.change, MonitorReply(change: Sample.change),
            RecoverRequest(id: 3, generation: 17, options: [OptionValue("size", "512")]),
            UpgradeReply(upgraded: true, device: Sample.device), ServiceInfoReply(version: "1"),
            InterfaceDescriptionReply(description: "text"),
        ]
        for structure in structures {
            guard case .object(let members) = structure.json else {
                Issue.record("\(structure) is no object")
                continue
            }
            #expect(members.map(\.name) == Mirror(reflecting: structure).children.map(\.label), "\(structure)")
        }
    }

    @Test("survives being written and read", arguments: Sample.all)
    func roundTrip(sample: Sample) throws {
        #expect(try sample.pass(sample.full, .refuse) == sample.full)
    }

    @Test("refuses a member that is not declared, by name", arguments: Sample.all)
    func unknownMember(sample: Sample) {
        #expect(throws: InterfaceError.invalidParameter(parameter: "bogus")) {
            try sample.pass(Self.adding("bogus", 1, to: sample.full), .refuse)
        }
        // null is no value, but an unknown name is still a misspelt member.
        #expect(throws: InterfaceError.invalidParameter(parameter: "bogus")) {
            try sample.pass(Self.adding("bogus", .null, to: sample.full), .refuse)
        }
    }

    @Test("can be read by a client that is older than the broker", arguments: Sample.all)
    func ignoresUnknown(sample: Sample) throws {
        if case .input = sample.place { return }
        #expect(try sample.pass(Self.adding("later", 1, to: sample.full), .ignore) == sample.full)
    }

    @Test("refuses every member of another type, by name", arguments: Sample.all)
    func wrongType(sample: Sample) throws {
        for member in try members(sample.full) {
            for wrong in [JSON.bool(true), 7, "text", [1], .record([("a", 1)])] where wrong.kind != member.value.kind {
                let damaged = try Self.replacing(member.name, by: wrong, in: sample.full)
                let error = #expect(throws: InterfaceError.self) { try sample.pass(damaged, .refuse) }
                guard case .invalidParameter(let name)? = error else {
                    Issue.record("\(member.name): \(String(describing: error))")
                    continue
                }
                // An object in place of a map is read as a map: then the error names what is inside.
                #expect(name == member.name || name.hasPrefix(member.name + "."))
            }
        }
    }

    @Test("needs exactly the members that are not nullable", arguments: Sample.all)
    func missingMembers(sample: Sample) throws {
        let declared = try Declared().fields(of: sample.place)
        for field in declared {
            let without = try Self.replacing(field.name, by: nil, in: sample.full)
            let withNull = try Self.replacing(field.name, by: .null, in: sample.full)
            if case .nullable = field.kind {
                let read = try sample.pass(without, .refuse)
                #expect(try sample.pass(withNull, .refuse) == read)
                #expect(read[field.name] == nil)
            } else {
                let expected = InterfaceError.invalidParameter(parameter: field.name)
                #expect(throws: expected) { try sample.pass(without, .refuse) }
                #expect(throws: expected) { try sample.pass(withNull, .refuse) }
            }
        }
    }

    @Test("is an object", arguments: Sample.all)
    func notAnObject(sample: Sample) {
        #expect(throws: InterfaceError.invalidParameter(parameter: "parameters")) { try sample.pass([1], .refuse) }
    }

    @Test("has numbers within its own bounds only")
    func ranges() throws {
        for (name, value) in [
            ("id", -1), ("id", 1 << 32), ("generation", -1), ("owner", -1), ("queues", 65536), ("workerPid", 1 << 31),
        ] as [(String, Int64)] {
            let damaged = try Self.replacing(name, by: .integer(value), in: Sample.device.json)
            #expect(throws: InterfaceError.invalidParameter(parameter: "device." + name)) {
                try Device(json: damaged, path: "device")
            }
        }
        #expect(throws: InterfaceError.invalidParameter(parameter: "state")) {
            try Device(json: Self.replacing("state", by: "broken", in: Sample.device.json))
        }
    }

    @Test("names the place of a mistake inside it")
    func paths() throws {
        let damaged = try Self.replacing("depth", by: "x", in: Sample.device.json)
        #expect(throws: InterfaceError.invalidParameter(parameter: "devices[1].depth")) {
            try ListReply(parameters: .record([("devices", [Sample.device.json, damaged])]))
        }
        #expect(throws: InterfaceError.invalidParameter(parameter: "options.size")) {
            try AddRequest(parameters: .record([("target", "null"), ("options", .record([("size", 1)]))]))
        }
        #expect(throws: InterfaceError.invalidParameter(parameter: "limits.zeroCopy")) {
            let limits = try Self.replacing("zeroCopy", by: nil, in: Sample.limits.json)
            return try InfoReply(parameters: Self.replacing("limits", by: limits, in: Sample.info.json))
        }
    }

    @Test("keeps all 64 bits of the kernel's features")
    func featureBits() throws {
        var info = Sample.info
        info.featureBits = .max
        #expect(try InfoReply(parameters: info.json).featureBits == .max)
    }

    private func members(_ json: JSON) throws -> [JSON.Member] {
        guard case .object(let members) = json else { throw IDL.Mistake(description: "no object") }
        return members
    }

    private static func adding(_ name: String, _ value: JSON, to json: JSON) -> JSON {
        guard case .object(let members) = json else { return json }
        return .object(members + [JSON.Member(name, value)])
    }

    private static func replacing(_ name: String, by value: JSON?, in json: JSON) throws -> JSON {
        guard case .object(let members) = json, members.contains(where: { $0.name == name }) else {
            throw IDL.Mistake(description: "the sample has no \(name)")
        }
        return .object(
            members.compactMap { member in
                member.name == name ? value.map { JSON.Member(name, $0) } : member
            })
    }
}

/// What docs/varlink.md promises of messages that somebody wrote to deceive the parser.
@Suite("A hostile message")
struct HostileMessageTests {
    /// The name of the refused parameter; "closed" when the connection is closed, "" when the message is accepted.
    private func outcome(_ parameters: String, _ method: String = "Add", more: String = "true") -> String {
        let text = #"{"method":"io.ubd.Broker.\#(method)","more":\#(more),"parameters":\#(parameters)}"#
        do {
            let call = try Call(message: Array(text.utf8))
            _ = try BrokerCall(call)
            return ""
        } catch let error as InterfaceError {
            guard case .invalidParameter(let name) = error else { return "\(error)" }
            // The name goes back to whoever sent it, and into the log.
            #expect(error.reply.message.dropLast().allSatisfy { $0 >= 0x20 && $0 != 0x7F })
            return name
        } catch { return "closed" }
    }

    @Test(
        "with a member twice closes the connection, however the names are written and the values differ",
        arguments: [
            #"{"target":"null","target":"null"}"#, #"{"target":"null","target":null}"#, #"{"id":1,"id":"1"}"#,
            #"{"target":"null","t\u0061rget":"loop"}"#, #"{"target":"null","bogus":1,"bogus":{}}"#,
            #"{"target":"null","options":{"size":"1","size":"2"}}"#,
            #"{"target":"null","options":{"size":"1","\u0073ize":"1"}}"#,
        ])
    func twice(_ parameters: String) {
        #expect(outcome(parameters) == "closed")
    }

    @Test("with a member twice in its envelope closes the connection, also when one of them is null or a vendor's")
    func twiceInEnvelope() {
        for rest in [#""more":true,"more":true"#, #""more":null,"more":true"#, #""a.b":{},"a.b":{}"#] {
            let text = #"{"method":"io.ubd.Broker.Info",\#(rest)}"#
            #expect(throws: MalformedMessage.self) { try Call(message: Array(text.utf8)) }
        }
    }

    @Test(
        "with a number outside the range of its member is refused by name, and outside 64 bits closes the connection",
        arguments: [
            ("-1", "id"), ("4294967295", ""), ("4294967296", "id"), ("9223372036854775807", "id"),
            ("-9223372036854775808", "id"), ("9223372036854775808", "closed"), ("1.0", "closed"), ("1e0", "closed"),
            ("-0", ""), ("01", "closed"), ("\"1\"", "id"), ("null", "id"), ("true", "id"), ("[1]", "id"), ("{}", "id"),
        ])
    func numbers(_ number: String, _ expected: String) {
        #expect(outcome(#"{"id":\#(number)}"#, "Delete", more: "false") == expected)
    }

    @Test(
        "with an absurd but possible number is refused when the request is checked", arguments: [Int64.min, -1, .max])
    func absurd(_ number: Int64) throws {
        for change in [
            { $0.id = number }, { $0.queues = number }, { $0.depth = number }, { $0.maxIOBytes = number },
            { $0.ioTimeout = number },
        ] as [(inout AddRequest) -> Void] {
            var request = AddRequest(target: "null")
            change(&request)
            #expect(outcome(request.json.text) == "")
            #expect(throws: InterfaceError.self) { try AddPlan(request) }
        }
    }

    @Test(
        "of eight levels is refused for what it says, and of nine closes the connection",
        arguments: [(6, "bogus"), (7, "closed"), (16_000, "closed")])
    func depth(_ levels: Int, _ expected: String) {
        let deep = String(repeating: "[", count: levels) + String(repeating: "]", count: levels)
        #expect(outcome(#"{"target":"null","bogus":\#(deep)}"#) == expected)
    }

    @Test(
        "with a wrong type anywhere is refused by name",
        arguments: [
            (#"{}"#, "target"), (#"{"target":null}"#, "target"), (#"{"target":["null"]}"#, "target"),
            (#"{"target":"null","readOnly":1}"#, "readOnly"), (#"{"target":"null","readOnly":"true"}"#, "readOnly"),
            (#"{"target":"null","options":[]}"#, "options"),
            (#"{"target":"null","options":{"size":1}}"#, "options.size"),
            (#"{"target":"null","options":{"size":null}}"#, "options.size"),
            (#"{"target":"null","options":{"size":{"size":"1"}}}"#, "options.size"),
            (#"{"target":"null","options":null,"readOnly":null,"id":null}"#, ""),
            ("{\"target\":\"null\",\"\\u0000\\u001b[2J\\u009b\":null}", "\0\u{1B}[2J\u{9B}"), (#"[]"#, "closed"),
            (#""x""#, "closed"), (#"{"target":"\ud800"}"#, "closed"), ("{\"target\":\"\u{1}\"}", "closed"),
        ])
    func types(_ parameters: String, _ expected: String) {
        #expect(outcome(parameters) == expected)
    }

    @Test("that is not UTF-8 closes the connection, and what is written is UTF-8 without control characters")
    func encodings() throws {
        for bytes in [[0xFF], [0xC0, 0x80], [0xED, 0xA0, 0x80], [0xF4, 0x90, 0x80, 0x80], [0xC3]] as [[UInt8]] {
            let text = Array(#"{"method":"io.ubd.Broker.Info","a.b":{"x":""#.utf8) + bytes + Array(#""}}"#.utf8)
            #expect(throws: MalformedMessage.self) { try Call(message: text) }
        }
        let scalars = (0...0x2FF).map { Unicode.Scalar($0)! } + ["\u{2028}", "\u{FFFF}", "\u{1F600}", "\u{10FFFF}"]
        let name = String(String.UnicodeScalarView(scalars))
        var device = Sample.device
        (device.file, device.reason) = (name, String(decoding: [0x61, 0xFF, 0xC3], as: UTF8.self))
        let bytes = device.json.bytes
        let text = try #require(String(validating: bytes, as: UTF8.self))
        #expect(!text.unicodeScalars.contains { $0.value < 0x20 || (0x7F...0x9F).contains($0.value) })
        #expect(try Device(json: JSON(parsing: bytes, limits: .reply)) == device)
    }
}

@Suite("A reply to Add")
struct AddReplyTests {
    @Test("asks for files and announces another reply, or brings the device and ends the call")
    func envelopes() throws {
        let files = AddReply.files(count: 2, parking: 0)
        #expect(files.reply == Reply(parameters: .record([("files", 2), ("parking", 0)]), continues: true))
        #expect(try AddReply(parameters: files.json) == files)
        for notices in [[], [Sample.notice]] {
            let added = AddReply.added(Sample.device, notices: notices)
            #expect(!added.reply.continues)
            #expect(try AddReply(parameters: added.json) == added)
        }
    }

    @Test("is one or the other")
    func mixed() {
        for (json, name) in [
            (JSON.empty, "files"), (.record([("files", 1)]), "parking"), (.record([("parking", 0)]), "files"),
            (.record([("files", 0), ("parking", 0)]), "files"), (.record([("files", 17), ("parking", 0)]), "files"),
            (.record([("files", 1), ("parking", 1)]), "parking"),
            (.record([("files", 1), ("parking", 0), ("notices", [])]), "notices"),
            (.record([("files", 1), ("device", Sample.device.json)]), "files"),
        ] {
            #expect(throws: InterfaceError.invalidParameter(parameter: name)) { try AddReply(parameters: json) }
        }
    }
}

@Suite("An error")
struct InterfaceErrorTests {
    @Test("survives its way over the wire", arguments: Sample.errors + Sample.serviceErrors)
    func roundTrip(error: InterfaceError) throws {
        let reply = try Reply(message: Array(error.reply.message.dropLast()))
        #expect(try InterfaceError(name: #require(reply.error), parameters: reply.parameters) == error)
    }

    @Test("says what was wrong and what to do next", arguments: Sample.errors + Sample.serviceErrors)
    func words(error: InterfaceError) {
        #expect(!error.message.isEmpty && !error.remedy.isEmpty)
    }

    @Test(
        "of another interface is not ours",
        arguments: ["Busy", "io.ubd.Broker.Nope", "org.example.Busy", "io.ubd.Broker.busy"])
    func foreign(name: String) throws {
        #expect(try InterfaceError(name: name, parameters: .empty, unknown: .ignore) == nil)
    }
}

@Suite("A call to the broker")
struct BrokerCallTests {
    @Test("survives its way over the wire")
    func roundTrip() throws {
        for call in [
            BrokerCall.add(Sample.add), .delete(DeleteRequest(id: 1)), .list(ListRequest()), .list(ListRequest(id: 4)),
            .info, .serviceInfo, .interfaceDescription(of: "io.ubd.Broker"),
        ] {
            let message = call.call.message
            #expect(try BrokerCall(Call(message: Array(message.dropLast()))) == call)
        }
    }

    @Test("of a method or an interface that is not there is refused by name")
    func notFound() {
        #expect(throws: InterfaceError.methodNotFound(method: "io.ubd.Broker.Format")) {
            try BrokerCall(Call(method: "io.ubd.Broker.Format"))
        }
        #expect(throws: InterfaceError.methodNotFound(method: "org.varlink.service.Add")) {
            try BrokerCall(Call(method: "org.varlink.service.Add"))
        }
        #expect(throws: InterfaceError.interfaceNotFound(interface: "io.ubd.Other")) {
            try BrokerCall(Call(method: "io.ubd.Other.Add"))
        }
    }

    @Test("to Add must allow several replies")
    func more() {
        let call = Call(method: "io.ubd.Broker.Add", parameters: Sample.add.json)
        #expect(throws: InterfaceError.expectedMore) { try BrokerCall(call) }
    }

    @Test("to take the connection over is refused, since a success would confirm it")
    func upgrade() {
        for name in ["io.ubd.Broker.Info", "io.ubd.Broker.Add", "org.varlink.service.GetInfo"] {
            #expect(throws: InterfaceError.methodNotImplemented(method: name)) {
                try BrokerCall(
                    Call(method: name, parameters: name.hasSuffix("Add") ? Sample.add.json : .empty, upgrade: true))
            }
        }
    }

    @Test("without parameters takes none")
    func noParameters() {
        for name in ["io.ubd.Broker.Info", "org.varlink.service.GetInfo"] {
            #expect(throws: InterfaceError.invalidParameter(parameter: "x")) {
                try BrokerCall(Call(method: name, parameters: .record([("x", 1)])))
            }
        }
    }
}

@Suite("A call of Monitor")
struct MonitorRequestTests {
    @Test("names at least one device, each once, and keeps only what it names")
    func parameters() throws {
        func read(_ json: JSON) throws(InterfaceError) -> MonitorRequest { try MonitorRequest(parameters: json) }
        #expect(try read(.empty) == MonitorRequest())
        #expect(try read(.record([("ids", [0]), ("keep", true)])) == MonitorRequest(ids: [0], keep: true))
        let many = JSON.array((0..<64).map { .integer($0) })
        #expect(try read(.record([("ids", many)])).ids?.count == MonitorRequest.mostIDs)
        for (ids, name) in [
            ([], "ids"), ([1, 1], "ids"), (.array((0..<65).map { .integer($0) }), "ids"), ([0, -1], "ids[1]"),
            ([.integer(1 << 32)], "ids[0]"), (["0"], "ids[0]"),
        ] as [(JSON, String)] {
            #expect(throws: InterfaceError.invalidParameter(parameter: name)) { try read(.record([("ids", ids)])) }
        }
        #expect(throws: InterfaceError.invalidParameter(parameter: "keep")) { try read(.record([("keep", true)])) }
    }

    @Test("is called with more, and not to hand over its connection")
    func flags() {
        let method = "io.ubd.Broker.Monitor"
        #expect(throws: InterfaceError.expectedMore) { try BrokerCall(Call(method: method)) }
        #expect(throws: InterfaceError.methodNotImplemented(method: method)) {
            try BrokerCall(Call(method: method, more: true, upgrade: true))
        }
    }

    @Test("hears of every state, and of a device that is no more")
    func states() throws {
        for state in DeviceState.allCases.map(Optional.some) + [nil] {
            let change = DeviceChange {
                ($0.id, $0.generation, $0.state) = (1, 2, state)
                $0.since = 3
            }
            #expect(try DeviceChange(json: change.json) == change)
        }
        #expect(DeviceState(rawValue: DeviceChange.gone) == nil)
        #expect(try MonitorReply(parameters: MonitorReply(change: nil).json).change == nil)
        #expect(MonitorReply(change: nil).reply.continues)
    }
}
