/// The right-hand side of a seccomp rule.
extension LineCursor {
    /// Well above any real rule; it bounds the filter's size.
    private static var maximumAlternatives: Int { 32 }

    mutating func verdict() throws(PolicyError) -> SeccompRule.Verdict {
        if takeKeyword("allow") {
            try expectEnd(after: "'allow'")
            return .allow
        }
        if let errno = try returnClause() {
            try expectEnd(after: "the errno")
            return .fail(errno: errno)
        }
        var alternatives: [[ArgumentTest]] = []
        repeat {
            skipBlanks()
            let start = location
            let tests = try conjunction()
            guard !alternatives.contains(tests) else {
                throw PolicyError(start, "this alternative is in the rule already")
            }
            alternatives.append(tests)
            guard alternatives.count <= Self.maximumAlternatives else {
                throw PolicyError(start, "more than \(Self.maximumAlternatives) alternatives in one rule")
            }
        } while take("||")
        guard take(";") else {
            skipBlanks()
            guard isAtEnd else { throw expected("'&&', '||', '; return ERRNO' or the end of the line") }
            return .test(alternatives: alternatives, otherwise: nil)
        }
        guard let errno = try returnClause() else { throw expected("'return ERRNO' after ';'") }
        try expectEnd(after: "the errno")
        return .test(alternatives: alternatives, otherwise: errno)
    }

    /// `return ERRNO`, by name or number; nil when the next word is not `return`.
    private mutating func returnClause() throws(PolicyError) -> UInt16? {
        guard takeKeyword("return") else { return nil }
        skipBlanks()
        let before = self
        guard let word = identifier() else { throw before.expected("an errno after 'return', such as ENOSYS") }
        // 4095 is the kernel's MAX_ERRNO (include/linux/err.h).
        if let number = UInt16(word.text), (1...4095).contains(number), !word.text.hasPrefix("0") { return number }
        guard let number = SystemConstants.errnos[word.text] else {
            throw before.expected("an errno that ubd knows (a name such as ENOSYS, or 1 to 4095)")
        }
        return number
    }

    /// Tests joined by `&&`. Tests of the same argument are merged, since libseccomp accepts one comparison per
    /// argument.
    private mutating func conjunction() throws(PolicyError) -> [ArgumentTest] {
        var tests: [Int: ArgumentTest] = [:]
        repeat {
            skipBlanks()
            let start = location
            let test = try argumentTest()
            guard let other = tests[test.index] else {
                tests[test.index] = test
                continue
            }
            guard other.value & test.mask == test.value & other.mask else {
                throw PolicyError(start, "this contradicts the earlier test of arg\(test.index)")
            }
            tests[test.index] = ArgumentTest(
                index: test.index, mask: other.mask | test.mask, value: other.value | test.value)
        } while take("&&")
        return tests.values.sorted { $0.index < $1.index }
    }

    private mutating func argumentTest() throws(PolicyError) -> ArgumentTest {
        skipBlanks()
        let before = self
        guard let word = identifier(), word.text.utf8.count == 4, word.text.hasPrefix("arg"),
            let index = Int(word.text.dropFirst(3)), (0...5).contains(index)
        else { throw before.expected("'allow', 'return' or an argument (arg0 to arg5)") }
        if take("==") {
            return ArgumentTest(index: index, mask: .max, value: try value())
        }
        if takeKeyword("in") {
            let isComplement = take("~")
            let start = location
            let mask = isComplement ? try groupedValue() : ~(try value())
            guard mask != 0 else { throw PolicyError(start, "every value of arg\(index) passes; write 'allow'") }
            return ArgumentTest(index: index, mask: mask, value: 0)
        }
        // "&&" here means that this test lacks its operator.
        let operatorStart = self
        guard take("&"), !take("&") else {
            throw operatorStart.expected("'==', 'in' or '&' after arg\(index)")
        }
        skipBlanks()
        let start = location
        let bit = try value()
        guard bit.nonzeroBitCount == 1 else {
            throw PolicyError(
                start, "'&' tests one bit, \(hexadecimal(bit)) has \(bit.nonzeroBitCount); join tests with && or ||")
        }
        return ArgumentTest(index: index, mask: bit, value: bit)
    }

    /// After `~`: one constant, or several in parentheses, so that the reach of `~` is explicit.
    private mutating func groupedValue() throws(PolicyError) -> UInt64 {
        if take("(") {
            let result = try value()
            guard take(")") else { throw expected("'|' or ')'") }
            return result
        }
        let result = try constant()
        if takeSingleBar() { throw expected("parentheses around the constants: ~(A|B)") }
        return result
    }

    /// Constants joined by `|`.
    private mutating func value() throws(PolicyError) -> UInt64 {
        var result = try constant()
        while takeSingleBar() { result |= try constant() }
        return result
    }

    /// Takes `|`, but not the `||` between alternatives.
    private mutating func takeSingleBar() -> Bool {
        let before = self
        guard take("|") else { return false }
        guard take("|") else { return true }
        self = before
        return false
    }

    private mutating func constant() throws(PolicyError) -> UInt64 {
        skipBlanks()
        let before = self
        guard let word = identifier() else { throw before.expected("a number or the name of a constant") }
        guard word.text.utf8.first!.isDigit else {
            guard let value = SystemConstants.values[word.text] else {
                throw before.expected("a constant that ubd knows (Sources/Shared/Policy/Seccomp/SystemConstants.swift)")
            }
            return value
        }
        let isHexadecimal = word.text.hasPrefix("0x")
        guard
            let value = isHexadecimal
                ? UInt64(word.text.dropFirst(2), radix: 16) : UInt64(word.text, radix: 10),
            isHexadecimal || word.text == "0" || !word.text.hasPrefix("0")
        else { throw before.expected("a decimal number (no leading 0) or 0x and hexadecimal digits, below 2^64") }
        return value
    }
}
