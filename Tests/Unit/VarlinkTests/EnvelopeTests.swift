import Testing
import Varlink

@Suite("A call")
struct CallTests {
    private func call(_ text: String) throws(MalformedMessage) -> Call { try Call(message: Array(text.utf8)) }

    @Test(
        "has the same meaning with parameters absent, null or empty",
        arguments: [
            #"{"method":"io.ubd.Broker.List"}"#, #"{"method":"io.ubd.Broker.List","parameters":null}"#,
            #"{"parameters":{},"method":"io.ubd.Broker.List","more":false,"oneway":null}"#,
        ])
    func emptyParameters(text: String) throws {
        #expect(try call(text) == Call(method: "io.ubd.Broker.List"))
    }

    @Test("knows its interface and method")
    func names() throws {
        let call = Call(method: "io.ubd.Broker.List")
        #expect(call.interface == "io.ubd.Broker")
        #expect(call.methodName == "List")
        #expect(Call(method: "x").interface == "" && Call(method: "x").methodName == "x")
    }

    @Test("survives being written and read")
    func roundTrip() throws {
        for flags in [(false, false, false), (true, false, false), (false, true, false), (false, false, true)] {
            let call = Call(
                method: "io.ubd.Broker.Add", parameters: .record([("target", "null")]), more: flags.0, oneway: flags.1,
                upgrade: flags.2)
            let message = call.message
            #expect(message.last == 0)
            #expect(try Call(message: Array(message.dropLast())) == call)
        }
        #expect(Call(method: "a.b.C").message == Array(#"{"method":"a.b.C"}"#.utf8) + [0])
    }

    @Test(
        "is malformed when its envelope is not as UAPI.20 says",
        arguments: [
            ("[]", MalformedMessage.notAnObject(kind: "an array")), ("3", .notAnObject(kind: "an integer")),
            ("{}", .missingMethod), (#"{"method":null}"#, .missingMethod),
            (#"{"method":1}"#, .badMember(name: "method", kind: "an integer")),
            (#"{"method":"a.b.C","more":1}"#, .badMember(name: "more", kind: "an integer")),
            (#"{"method":"a.b.C","oneway":"true"}"#, .badMember(name: "oneway", kind: "a string")),
            (#"{"method":"a.b.C","upgrade":{}}"#, .badMember(name: "upgrade", kind: "an object")),
            (#"{"method":"a.b.C","parameters":[]}"#, .badMember(name: "parameters", kind: "an array")),
            (#"{"method":"a.b.C","More":true}"#, .unknownMember("More")),
            (#"{"method":"a.b.C","x-thing":{}}"#, .unknownMember("x-thing")),
            (#"{"method":"a.b.C","org.example":1}"#, .badMember(name: "org.example", kind: "an integer")),
            (#"{"method":"a.b.C","more":true,"oneway":true}"#, .conflictingFlags("more", "oneway")),
            (#"{"method":"a.b.C","oneway":true,"upgrade":true}"#, .conflictingFlags("oneway", "upgrade")),
            (#"{"method":"a.b.C""#, .notJSON(JSONError(.endOfText, at: 17))),
        ])
    func malformed(text: String, expected: MalformedMessage) {
        #expect(throws: expected) { try call(text) }
        #expect(!expected.description.isEmpty)
    }

    @Test("ignores what a vendor added in an object of its own name")
    func vendor() throws {
        let text = #"{"method":"a.b.C","org.example":{"trace":[1]},"more":true}"#
        #expect(try call(text) == Call(method: "a.b.C", more: true))
    }

    @Test(
        "names its method in full, in ASCII",
        arguments: [
            "C", "b.C", "a.b.c", "a.b.", ".b.C", "a..C", "a.-b.C", "a.b-.C", "a.b.C\n", "a.b.\u{212A}", "a.b.C d", "",
        ])
    func badNames(name: String) {
        let message = JSON.record([("method", .string(name))]).text
        #expect(throws: MalformedMessage.badMethodName(name)) { try call(message) }
    }

    @Test("is refused when it is larger than the broker takes")
    func tooLarge() {
        let text = #"{"method":"a.b.C","parameters":{"x":""# + String(repeating: "a", count: 16384) + #""}}"#
        #expect(throws: MalformedMessage.notJSON(JSONError(.tooLong, at: 16384))) { try call(text) }
    }
}

@Suite("A reply")
struct ReplyTests {
    private func reply(_ text: String) throws(MalformedMessage) -> Reply { try Reply(message: Array(text.utf8)) }

    @Test("survives being written and read")
    func roundTrip() throws {
        let replies = [
            Reply(), Reply(parameters: .record([("a", 1)])), Reply(parameters: .record([("a", 1)]), continues: true),
            Reply(error: "a.b.C"), Reply(error: "a.b.C", parameters: .record([("a", 1)])),
        ]
        for reply in replies {
            let message = reply.message
            #expect(message.last == 0)
            #expect(try Reply(message: Array(message.dropLast())) == reply)
        }
        #expect(Reply().message == [0x7B, 0x7D, 0])
    }

    @Test("may have null where it has nothing to say")
    func nulls() throws {
        #expect(try reply(#"{"parameters":null,"continues":null,"error":null}"#) == Reply())
    }

    @Test("is malformed when its envelope is not as UAPI.20 says")
    func malformed() {
        #expect(throws: MalformedMessage.unknownMember("ok")) { try reply(#"{"ok":true}"#) }
        #expect(throws: MalformedMessage.badMember(name: "error", kind: "a boolean")) { try reply(#"{"error":true}"#) }
        #expect(throws: MalformedMessage.continuesWithError) { try reply(#"{"error":"a.b.C","continues":true}"#) }
        #expect(throws: MalformedMessage.notAnObject(kind: "null")) { try reply("null") }
    }
}
