import ArgumentParser
import Foundation
import Testing

@testable import ubd

/// The fast parser of `add` and `del`: it must give the same results as ArgumentParser.
@Suite("A plain command line")
struct PlainLineTests {
    /// All properties of a command, with their values.
    private func values(_ command: any Performable) -> [String] {
        Mirror(reflecting: command).children.map { "\($0.label ?? "") = \($0.value)" }
    }

    /// ArgumentParser's result for the line; nil when it refuses it.
    private func parsed(_ arguments: [String]) -> [String]? {
        guard let arguments = try? UBD.parseAsRoot(arguments) as? any PlainArguments else { return nil }
        return values(arguments.command)
    }

    private func plain(_ arguments: [String]) -> [String]? { PlainLine.command(arguments).map(values) }

    @Test(
        "is read as ArgumentParser reads it",
        arguments: [
            "add -t null", "add --target null --json", "add -t loop -f x -n 3 -q 2 -d 9",
            "add --json --shared --buffered --read-only -f /tmp/x -t loop --offset 1M --size 2g --block-size 4K",
            "add -t null --max-io-size 1MiB --recovery none --io-timeout 5 --mode batch --cpus 0-1,3",
            "add -t null --enable", "add --enable --json -t null", "add -t null --enable x",
            "add --enable x -f y -t loop",
            "add -t nothing --mode x --recovery y -q 0 -n +5",
            "del -n 0", "del -n 0 --generation 17", "del --generation 18446744073709551615 --number 7",
            "del --number 7 --force --json", "del -a", "del --all --force",
        ])
    func same(line: String) throws {
        let arguments = line.split(separator: " ").map(String.init)
        let plain = try #require(self.plain(arguments))
        #expect(plain == parsed(arguments))
    }

    @Test(
        "is nothing else: that is ArgumentParser's to read, or to refuse",
        arguments: [
            "", "add", "add --help", "add -h", "add -t", "add -t null --help", "add -t null extra", "add extra -t null",
            "add -t null -t loop", "add --target=null", "add -tnull", "add -t null --size",
            "add -t null -q two", "add -t null --json --json", "add -t -f x", "add -f -t null x", "add -t null -f -x",
            "add -t null --frobnicate", "add -t null --enable=x", "add -t null --enable x y",
            "add -t null --enable --enable", "add -t null --", "add -t null -- x",
            "add -t null -n 99999999999999999999",
            "del", "del -n 0 -a", "del --generation 17", "del -a --generation 17", "del -n 0 --generation x",
            "del -n 0 --generation -1", "del -n", "del -n x", "del -n -1", "del 0", "del -an 0", "del --version",
            "list",
            "--version", "help add", "--generate-completion-script bash",
        ])
    func others(line: String) {
        #expect(plain(line.split(separator: " ").map(String.init)) == nil)
    }

    @Test("whose value is empty is not one")
    func empty() {
        #expect(plain(["add", "-t", "null", "-f", ""]) == nil)
    }

    @Test("may have every option of its command, by each of its names", arguments: ["add", "del"])
    func complete(name: String) throws {
        let text = name == "add" ? AddArguments._dumpHelp() : DeleteArguments._dumpHelp()
        let help = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        let command = try #require(help["command"] as? [String: Any])
        var seen = 0
        for option in try #require(command["arguments"] as? [[String: Any]]) {
            // What stands behind "--" has no name.
            for spelling in option["names"] as? [[String: Any]] ?? [] {
                let short = spelling["kind"] as? String == "short"
                let option = try (short ? "-" : "--") + #require(spelling["name"] as? String)
                if ["-h", "--help", "--version"].contains(option) { continue }
                seen += 1
                // A generation is one device's.
                let ofDelete = option == "--generation" ? ["-n", "7"] : ["-a"]
                let needed = name == "add" ? ["-t", "null"] : ofDelete
                let others = ["-t", "--target", "-n", "--number", "-a", "--all"].contains(option) ? [] : needed
                // All of these that ArgumentParser accepts.
                let lines =
                    [[], ["7"], ["4K"]].map { [name, option] + $0 + others }
                    + [[], ["7"], ["4K"]].map { [name, option] + $0 + needed }
                let line = try #require(lines.first { parsed($0) != nil }, "\(option)")
                #expect(plain(line) == parsed(line), "\(option): \(line)")
            }
        }
        // Of the targets come -f, --file, and five more.
        #expect(seen >= (name == "add" ? 21 : 7))
    }
}
