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
