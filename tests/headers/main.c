/* SPDX-License-Identifier: MIT */
/* That this links is the test: inline functions of the headers clash nowhere.
 */
int main(void)
{
	return 0;
}
