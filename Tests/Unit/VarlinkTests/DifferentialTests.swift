import Foundation
import Testing
import Varlink

/// Python's json module, with the same strict rules, must agree on every document: accepted by both with the same
/// value, or refused by both.
@Suite("The JSON parser and Python's")
struct DifferentialTests {
    static let python = ["/usr/bin/python3", "/usr/local/bin/python3", "/bin/python3"].first {
        FileManager.default.isExecutableFile(atPath: $0)
    }

    @Test("agree on random and on damaged documents", .enabled(if: python != nil, "python3 is not installed"))
    func agree() throws {
        let documents = Self.documents(count: 1200)
        let answers = try Self.ask(documents)
        try #require(answers.count == documents.count)
        var accepted = 0
        for (document, answer) in zip(documents, answers) {
            let ours = try? JSON(parsing: document, limits: JSONLimits(bytes: 1 << 20, depth: 8))
            let theirs = answer == "refused" ? nil : try JSON(parsing: Array(answer.utf8), limits: .reply)
            accepted += ours == nil ? 0 : 1
            #expect(ours == theirs, "\(String(decoding: document, as: UTF8.self).debugDescription)")
        }
        // Both results must have occurred often.
        #expect(accepted > 200 && accepted < 1100, "accepted \(accepted)")
    }

    private static func documents(count: Int) -> [[UInt8]] {
        var random = Random(seed: 2026)
        let pieces = [
            "1.5", "1e2", "01", "-", "\\u", "\\ud800", "\\ud83d\\ude00", "\\u0000", "NaN", "Infinity", "\"a\":1,",
            "[[[[[[[[[",
            "]", "9223372036854775808", "-9223372036854775808", "\u{FEFF}", "\t", "'", "\\x", "tru", "null", ",", "}",
            "{",
        ].map { Array($0.utf8) }
        return (0..<count).map { index in
            var bytes = index % 2 == 0 ? random.json(depth: 7).bytes : Array(random.json(depth: 7).indentedText.utf8)
            for _ in 0..<(index % 4) where !bytes.isEmpty {
                let place = random.number(below: bytes.count)
                switch random.number(below: 5) {
                case 0: bytes.remove(at: place)
                case 1: bytes[place] = UInt8(truncatingIfNeeded: random.next())
                case 2: bytes.insert(contentsOf: pieces[random.number(below: pieces.count)], at: place)
                case 3: bytes.removeLast(bytes.count - place)
                default: bytes.insert(contentsOf: bytes[place...].prefix(20), at: place)
                }
            }
            return bytes
        }
    }

    /// One document per line as hexadecimal digits; one answer per line: "refused", or the value as JSON.
    private static let script = """
        import json, sys
        def pairs(list):
            if len({name for name, _ in list}) != len(list): raise ValueError("duplicate")
            return dict(list)
        def whole(text):
            value = int(text)
            if not -2**63 <= value < 2**63: raise ValueError("range")
            return value
        def never(text): raise ValueError(text)
        def depth(value):
            inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
            return 0 if inside is None else 1 + max(map(depth, inside), default=0)
        for line in sys.stdin:
            try:
                text = bytes.fromhex(line.strip()).decode("utf-8")
                value = json.loads(text, object_pairs_hook=pairs, parse_int=whole, parse_float=never, parse_constant=never)
                if depth(value) > 8: raise ValueError("depth")
                json.dumps(value, ensure_ascii=False).encode("utf-8")
                print(json.dumps(value, separators=(",", ":")))
            except (ValueError, RecursionError):
                print("refused")
        """

    private static func ask(_ documents: [[UInt8]]) throws -> [String] {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("ubd-json-\(UUID())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let input = folder.appendingPathComponent("documents")
        let lines = documents.map { $0.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined() }
        try (lines.joined(separator: "\n") + "\n").write(to: input, atomically: true, encoding: .utf8)
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(python))
        process.arguments = ["-I", "-c", script]
        process.standardInput = try FileHandle(forReadingFrom: input)
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let answer = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        return String(decoding: answer, as: UTF8.self).split(separator: "\n").map(String.init)
    }
}
