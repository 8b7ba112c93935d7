import Testing
import Varlink

@Suite("The JSON parser")
struct JSONParserTests {
    private static let allowed: [(String, JSON)] = [
        ("null", JSON.null), (" true ", true), ("\t\r\nfalse\n", false), ("0", 0), ("-0", 0), ("7", 7),
        ("-9223372036854775808", .integer(.min)), ("9223372036854775807", .integer(.max)),
        (#""""#, ""), (#""a\"\\\/\b\f\n\r\t""#, "a\"\\/\u{8}\u{C}\n\r\t"),
        (#""\u0000\u001F""#, "\u{0}\u{1F}"), (#""\ud83D\uDE00""#, "😀"), ("\"\u{7F}\u{2028}é\"", "\u{7F}\u{2028}é"),
        ("[]", []), ("[ ]", []), ("[1,[2 ],3]", [1, [2], 3]), ("{}", .empty), ("{ }", .empty),
        (#"{ "a" : 1 , "b":[null]}"#, .object([.init("a", 1), .init("b", [.null])])),
        (#"{"":{}}"#, .object([.init("", .empty)])),
    ]

    @Test(
        "accepts what JSON allows",
        arguments: allowed)
    func accepts(text: String, expected: JSON) throws {
        #expect(try JSON(parsing: text) == expected)
    }

    private static let notAllowed: [(String, JSONError.Reason, Int)] = [
        ("", JSONError.Reason.endOfText, 0), ("  ", .endOfText, 2), ("nul", .endOfText, 3), ("nulL", .expectedValue, 0),
        ("True", .expectedValue, 0), ("nullx", .trailingBytes, 4), ("1 2", .trailingBytes, 2),
        ("+1", .expectedValue, 0),
        ("-", .endOfText, 1), ("-a", .expectedValue, 0), (".5", .expectedValue, 0), ("NaN", .expectedValue, 0),
        ("Infinity", .expectedValue, 0), ("'a'", .expectedValue, 0), ("[1,]", .expectedValue, 3),
        ("[,1]", .expectedValue, 1), ("[1 2]", .expectedCommaOrEnd, 3), ("[1}", .expectedCommaOrEnd, 2),
        ("[", .endOfText, 1), ("]", .expectedValue, 0), ("{", .endOfText, 1), ("{a:1}", .expectedName, 1),
        ("{1:1}", .expectedName, 1), (#"{"a"}"#, .expectedColon, 4), (#"{"a":}"#, .expectedValue, 5),
        (#"{"a":1,}"#, .expectedName, 7), (#"{"a":1 "b":2}"#, .expectedCommaOrEnd, 7), ("\"a", .endOfText, 2),
        (#""\x41""#, .badEscape, 1), (#""\u12""#, .badEscape, 1), (#""\u12G4""#, .badEscape, 1),
        (#""\"#, .endOfText, 2),
        ("\"a\nb\"", .controlCharacter, 2), ("\"\u{0}\"", .controlCharacter, 1), ("\"\u{1F}\"", .controlCharacter, 1),
        ("\u{FEFF}1", .expectedValue, 0), ("\u{A0}1", .expectedValue, 0), ("/**/1", .expectedValue, 0),
    ]

    @Test(
        "refuses what JSON does not allow, and tells where",
        arguments: notAllowed)
    func refuses(text: String, reason: JSONError.Reason, offset: Int) {
        #expect(throws: JSONError(reason, at: offset)) { try JSON(parsing: text) }
    }

    private static let ambiguous: [(String, JSONError.Reason, Int)] = [
        ("1.0", JSONError.Reason.notAnInteger, 0), ("1e3", .notAnInteger, 0), ("-1E+3", .notAnInteger, 0),
        ("01", .leadingZero, 0), ("-01", .leadingZero, 0), ("00", .leadingZero, 0),
        ("9223372036854775808", .outOfRange, 0), ("-9223372036854775809", .outOfRange, 0),
        ("[18446744073709551616]", .outOfRange, 1), (#"{"a":1,"a":2}"#, .duplicateName, 7),
        (#"{"a":1,"\u0061":2}"#, .duplicateName, 7), (#"{"x":{"b":1,"b":1}}"#, .duplicateName, 12),
        (#""\ud800""#, .loneSurrogate, 1), (#""\udc00""#, .loneSurrogate, 1), (#""\ud800\u0041""#, .loneSurrogate, 1),
        (#""\ud800x""#, .loneSurrogate, 1), (#""\ud800\n""#, .loneSurrogate, 1),
    ]

    @Test(
        "refuses what JSON allows but Varlink's peers could read in two ways",
        arguments: ambiguous)
    func refusesStrictly(text: String, reason: JSONError.Reason, offset: Int) {
        #expect(throws: JSONError(reason, at: offset)) { try JSON(parsing: text) }
    }

    @Test(
        "refuses bytes that are not UTF-8",
        arguments: [
            [0x80], [0xC0, 0x80], [0xC1, 0xBF], [0xC3], [0xE0, 0x80, 0x80], [0xED, 0xA0, 0x80],
            [0xF0, 0x80, 0x80, 0x80],
            [0xF4, 0x90, 0x80, 0x80], [0xF8, 0x88, 0x80, 0x80, 0x80], [0xFF], [0xE2, 0x82],
        ] as [[UInt8]])
    func refusesBadUTF8(bytes: [UInt8]) {
        #expect(throws: JSONError(.notUTF8, at: 0)) { try JSON(parsing: [0x22] + bytes + [0x22]) }
    }

    @Test("keeps names apart that Swift's own comparison would take for one")
    func canonicalEquivalents() throws {
        // U+212A KELVIN SIGN is canonically equivalent to K.
        let value = try JSON(parsing: "{\"K\":1,\"\u{212A}\":2}")
        #expect(value["K"] == 1)
        #expect(value["\u{212A}"] == 2)
        #expect(JSON.string("K") != JSON.string("\u{212A}"))
        #expect(JSON.string("é") != JSON.string("e\u{301}"))
    }

    @Test("keeps the order of members")
    func order() throws {
        #expect(try JSON(parsing: #"{"b":1,"a":2}"#).text == #"{"b":1,"a":2}"#)
    }

    @Test("allows as many levels as its limit and not one more", arguments: [1, 2, 8, 100])
    func depth(limit: Int) throws {
        let limits = JSONLimits(bytes: 1000, depth: limit)
        func nested(_ levels: Int) -> String {
            String(repeating: "[", count: levels) + String(repeating: "]", count: levels)
        }
        _ = try JSON(parsing: nested(limit), limits: limits)
        #expect(throws: JSONError(.tooDeep, at: limit)) { try JSON(parsing: nested(limit + 1), limits: limits) }
        let objects = String(repeating: #"{"a":"#, count: limit + 1)
        #expect(throws: JSONError(.tooDeep, at: limit * 5)) { try JSON(parsing: objects, limits: limits) }
    }

    @Test("allows as many bytes as its limit and not one more")
    func size() throws {
        let limits = JSONLimits(bytes: 10, depth: 8)
        #expect(try JSON(parsing: "\"12345678\"", limits: limits) == "12345678")
        #expect(throws: JSONError(.tooLong, at: 10)) { try JSON(parsing: "\"123456789\"", limits: limits) }
        #expect(throws: JSONError(.tooLong, at: 10)) { try JSON(parsing: "1          ", limits: limits) }
    }

    @Test("reads a full message of nothing but names without delay")
    func manyNames() throws {
        let members = (0..<1600).map { "\"n\($0)\":1" }.joined(separator: ",")
        let text = "{\(members)}"
        #expect(text.utf8.count < JSONLimits.call.bytes)
        guard case .object(let read) = try JSON(parsing: text) else {
            Issue.record("not an object")
            return
        }
        #expect(read.count == 1600)
    }
}

@Suite("The JSON writer")
struct JSONWriterTests {
    @Test("finds a name that is there twice in an object of any size", arguments: [2, 47, 48, 49, 50, 300])
    func duplicates(count: Int) throws {
        let names = (0..<count).map { #""n\#($0)":0"# }
        #expect(throws: Never.self) { try JSON(parsing: "{" + names.joined(separator: ",") + "}") }
        for twice in [0, count / 2, count - 1] {
            let text = "{" + (names + [names[twice]]).joined(separator: ",") + "}"
            let error = #expect(throws: JSONError.self) { try JSON(parsing: text) }
            #expect(error?.reason == .duplicateName, "\(twice)")
        }
    }

    @Test("escapes whatever could steer a terminal or break a line")
    func escapes() {
        let text = (0..<0x20).map { String(Unicode.Scalar($0 as UInt8)) }.joined() + "\"\\/\u{7F}\u{80}\u{9F}\u{A0}é😀"
        let written = JSON.string(text).text
        #expect(!written.unicodeScalars.contains { $0.value < 0x20 || (0x7F...0x9F).contains($0.value) })
        #expect(written.contains(#"\u001b"#))
        #expect(written.hasSuffix("\\\"\\\\/\\u007f\\u0080\\u009f\u{A0}é😀\""))
    }

    @Test("writes what the parser reads back")
    func roundTrip() throws {
        var random = Random(seed: 7)
        for _ in 0..<300 {
            let value = random.json(depth: 7)
            #expect(try JSON(parsing: value.bytes, limits: .reply) == value)
            #expect(try JSON(parsing: value.indentedText, limits: .reply) == value)
        }
    }

    @Test("leaves out members without a value")
    func absent() {
        #expect(JSON.record([("a", nil), ("b", 1), ("c", .null)]).text == #"{"b":1,"c":null}"#)
    }

    @Test("writes one member a line for people")
    func indented() {
        let value = JSON.record([("a", [1, 2]), ("b", .empty)])
        #expect(value.indentedText == "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}")
    }
}
