import BrokerInterface
import Testing
import Varlink

/// The declarations of the description, by place.
struct Declared {
    let idl: IDL

    init() throws { idl = try IDL(BrokerAPI.description) }

    func fields(of place: Sample.Place) throws -> [IDL.Field] {
        switch place {
        case .type(let name):
            guard case .structure(let fields)? = idl.types[name] else { break }
            return fields
        case .input(let name): if let method = idl.methods[name] { return method.input }
        case .output(let name): if let method = idl.methods[name] { return method.output }
        case .error(let name): if let fields = idl.errors[name] { return fields }
        }
        throw IDL.Mistake(description: "\(place) is not declared")
    }

    /// Whether a value is of the declared type, all the way down.
    func fits(_ value: JSON?, _ kind: IDL.Kind) -> Bool {
        switch (kind, value) {
        case (.nullable, nil), (.nullable, .null?): return true
        case (.nullable(let inner), _): return fits(value, inner)
        case (.bool, .bool?), (.int, .integer?), (.string, .string?), (.object, .object?): return true
        case (.array(let inner), .array(let elements)?): return elements.allSatisfy { fits($0, inner) }
        case (.map(let inner), .object(let members)?): return members.allSatisfy { fits($0.value, inner) }
        case (.named(let name), _): return idl.types[name].map { fits(value, $0) } ?? false
        case (.structure(let fields), .object(let members)?):
            return members.allSatisfy { member in fields.contains { $0.name == member.name } }
                && fields.allSatisfy { fits(value?[$0.name], $0.kind) }
        default: return false
        }
    }
}

@Suite("The interface's description")
struct DescriptionTests {
    @Test("is valid Varlink and declares what it should")
    func parses() throws {
        let idl = try IDL(BrokerAPI.description)
        #expect(idl.interface == "io.ubd.Broker")
        #expect(
            Set(idl.types.keys) == [
                "Device", "Notice", "Limits", "OperationCount", "Counts", "DeviceStats", "GroupLimits", "Change",
            ])
        #expect(
            Set(idl.methods.keys) == [
                "Add", "Delete", "List", "Stats", "Upgrade", "Resize", "Recover", "Info", "Monitor",
            ])
        #expect(Set(idl.errors.keys) == Set(Sample.errors.map { String($0.name.split(separator: ".").last!) }))
        let service = try IDL(BrokerAPI.serviceDescription)
        #expect(service.interface == "org.varlink.service")
        #expect(Set(service.methods.keys) == ["GetInfo", "GetInterfaceDescription"])
        #expect(
            Set(service.errors.keys) == Set(Sample.serviceErrors.map { String($0.name.split(separator: ".").last!) }))
    }

    @Test("has every comment on a line of its own, which all parsers take")
    func comments() {
        for line in BrokerAPI.description.split(separator: "\n") where line.contains("#") {
            #expect(line.drop { $0 == " " }.first == "#", "\(line)")
        }
        #expect(BrokerAPI.description.allSatisfy { $0.isASCII })
    }

    @Test("declares the members that the Swift types write, in their order and with their types", arguments: Sample.all)
    func agrees(sample: Sample) throws {
        let declared = try Declared()
        let fields = try declared.fields(of: sample.place)
        guard case .object(let members) = sample.full else {
            Issue.record("no object")
            return
        }
        if case .error = sample.place {
            #expect(Set(members.map(\.name)) == Set(fields.map(\.name)))
        } else {
            #expect(members.map(\.name) == fields.map(\.name))
        }
        #expect(declared.fits(sample.full, .structure(fields)))
    }

    @Test("declares both replies of Add, all of whose members may be absent")
    func addReplies() throws {
        let declared = try Declared()
        let output = IDL.Kind.structure(try declared.fields(of: .output("Add")))
        for reply in [AddReply.files(count: 1, parking: 0), .added(Sample.device, notices: [Sample.notice])] {
            #expect(declared.fits(reply.json, output))
        }
        #expect(declared.fits(.empty, output))
    }

    @Test("has no parameter that names a path to be opened by the broker")
    func noPaths() throws {
        let idl = try IDL(BrokerAPI.description)
        for method in idl.methods.values {
            #expect(!method.input.contains { $0.name.lowercased().contains("path") })
        }
    }

    @Test("is found by the interface's name")
    func lookup() throws {
        #expect(try BrokerAPI.description(of: "io.ubd.Broker") == BrokerAPI.description)
        #expect(try BrokerAPI.description(of: "org.varlink.service") == BrokerAPI.serviceDescription)
        #expect(throws: InterfaceError.interfaceNotFound(interface: "io.ubd")) {
            try BrokerAPI.description(of: "io.ubd")
        }
    }

    @Test("fits into one message, and the service's own replies survive")
    func service() throws {
        let reply = InterfaceDescriptionReply(description: BrokerAPI.description)
        #expect(try InterfaceDescriptionReply(parameters: JSON(parsing: reply.json.bytes, limits: .reply)) == reply)
        let info = ServiceInfoReply(version: "1")
        #expect(try ServiceInfoReply(parameters: info.json) == info)
        #expect(info.interfaces.contains(BrokerAPI.interface))
    }

    @Test("the little parser of this test refuses what the grammar does not allow")
    func checkerIsStrict() {
        for text in [
            "type A ()\n", "interface x\n", "interface a.b\ntype a ()\n", "interface a.b\nmethod A() -> ()",
            "interface a.b\nmethod A()\n", "interface a.b\nerror E(a: int,)\n", "interface a.b\nerror E(a: integer)\n",
            "interface a.b\nerror E(a_: int)\n", "interface a.b\nerror E(a: ??int)\n",
            "interface a.b\nerror E(a: int a: int)\n",
            "interface a.b\nerror E()\nerror E()\n", "interface a.b\nerror E(a: int, a: int)\n",
            "interface a.b\nerror E() error F()\n",
        ] {
            #expect(throws: IDL.Mistake.self, "\(text)") { try IDL(text) }
        }
    }
}
