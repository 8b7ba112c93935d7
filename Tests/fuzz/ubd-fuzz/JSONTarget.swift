import Glibc
import SystemCalls
import Varlink

/// What is accepted keeps to the limits and survives being written and read again.
func testJSON(_ bytes: [UInt8]) {
    let value: JSON
    do { value = try JSON(parsing: bytes) } catch {
        require((0...bytes.count).contains(error.offset), "error at \(error.offset) of \(bytes.count) bytes")
        return
    }
    let depth = checkNames(value)
    require(bytes.count <= JSONLimits.call.bytes && depth <= JSONLimits.call.depth, "beyond the limits")
    // One less of either must be too little.
    if let error = parseError(bytes, JSONLimits(bytes: bytes.count - 1, depth: 8)) {
        require(error == .tooLong, "\(error)")
    } else {
        require(false, "longer than the limit and accepted")
    }
    if depth > 0 {
        require(parseError(bytes, JSONLimits(bytes: bytes.count, depth: depth - 1)) == .tooDeep, "depth \(depth)")
    }
    let written = value.bytes
    require(written.allSatisfy { $0 >= 0x20 && $0 != 0x7F }, "a control character was written")
    let again = try? JSON(parsing: written, limits: JSONLimits(bytes: written.count, depth: depth))
    require(again == value, "changed when written and read")
    require(again?.bytes == written, "written differently the second time")
    let indented = try? JSON(parsing: Array(value.indentedText.utf8), limits: .reply)
    require(indented == value, "changed when written with indentation and read")
}

private func parseError(_ bytes: [UInt8], _ limits: JSONLimits) -> JSONError.Reason? {
    do {
        _ = try JSON(parsing: bytes, limits: limits)
        return nil
    } catch { return error.reason }
}

/// Levels of objects and arrays inside each other; no object may have a name twice.
func checkNames(_ value: JSON) -> Int {
    switch value {
    case .array(let elements): return 1 + (elements.map(checkNames).max() ?? 0)
    case .object(let members):
        for (index, member) in members.enumerated() {
            // Pairs of a long object are squares: the first few will do.
            for other in members[..<index].prefix(16) {
                require(!member.name.hasSameBytes(as: other.name), "a name appears twice")
            }
        }
        return 1 + (members.map { checkNames($0.value) }.max() ?? 0)
    default: return 0
    }
}

/// For Tests/fuzz/differential: "refused REASON", or "accepted" and the value in one form.
func jsonAnswer(_ path: String) -> String {
    let bytes: [UInt8]
    do { bytes = try readFile(path) } catch { return "unreadable \(error)" }
    do { return "accepted " + (try JSON(parsing: bytes)).text } catch { return "refused \(error.reason)" }
}
